"""A small real model before and after a fine-tuning, evaluated on all that packages ship.

SmolLM2-135M-Instruct, imported as an Arctic with four experts in every sixth layer, goes through the three stages of
`examples/smollm2-training.yaml` by `arctic train`. Both are evaluated by `arctic evaluate` on HumanEval's 164 problems,
100 questions of GSM8K, 194 of Spider's, of which a package has schemas and no rows (so that only exact set match says
anything), and texts of each category from documents that no step reads. Answers are greedy, through the chat template.
What is done is kept in the cache: one that is ended goes on where it was.
"""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arctic_cli.corpus import prepare_corpus
from arctic_cli.manifest import load_one
from arctic_cluster import paths
from arctic_workers.evaluation.records import read_lines
from arctic_workers.evaluation.run import READ, RESULTS
from arctic_workers.evaluation.scores import Parts, Score, difference, score
from arctic_workers.evaluation.suites.perplexity import Perplexity
from benchmarks import shipped
from benchmarks.form import Told, arguments, finish, note, print_table
from benchmarks.models import imported_model
from benchmarks.results import this_machine

EXPERTS, EVERY = 4, 6
EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2-training.yaml"
CONCURRENCY = 32
QUICK_TOKENS, QUICK_QUESTIONS = "2k", 8
EXPORT = f"{paths.STORE}/**/export/config.json"
BITS = "bits a byte, "
TOLD = {
    "humaneval": ["pass@1"],
    "gsm8k": ["strict match", "flexible extract"],
    "spider": ["exact set match"],
    Perplexity.name: [f"{BITS}{category}" for category in shipped.CATEGORIES],
}
"""Which figures are told of a suite."""


def main() -> None:
    """Train, evaluate both, print."""
    told = arguments(__doc__, f"a step a stage, and {QUICK_QUESTIONS} questions a suite")
    folder = _folder(told)
    suites = folder / "suites"
    if not suites.exists():
        _write(suites, QUICK_QUESTIONS if told.quick else None)
    imported = imported_model(EXPERTS, EVERY)
    tuned = _trained(folder, imported, QUICK_TOKENS if told.quick else None)
    before = _evaluated(folder, "imported", imported)
    after = _evaluated(folder, "tuned", tuned, "--compare", folder / "imported")
    rows = [(suite, figure) for suite in TOLD for figure in TOLD[suite]]
    print_table(
        f"SmolLM2-135M-Instruct on {this_machine()}; 95% intervals by bootstrap over the questions, or the texts",
        ("figure", "of", "imported", "fine-tuned", "difference, each by each"),
        [_row(folder, suite, figure, before[suite], after[suite]) for suite, figure in rows],
    )
    figures = {
        f"{_word(suite, figure)}_{name}": model[suite]["figures"][figure]["value"]
        for suite, figure in rows
        for name, model in (("imported", before), ("tuned", after))
    }
    finish(told, figures, less_is_better=[name for name in figures if name.startswith("bits")])


def _folder(told: Told) -> Path:
    """Return where this benchmark keeps what is done: another one for another recipe."""
    recipe = EXAMPLE.read_text() + Path(shipped.__file__).read_text() + str(told.quick)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = paths.cache() / "benchmarks" / f"fine-tuning-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(suites: Path, most: int | None) -> None:
    note(f"writing suites and text into {suites}")
    prepare_corpus(paths.default_volumes() / paths.CORPUS)
    beside = suites.with_suffix(".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shipped.write_suites(beside, most)
    beside.rename(suites)


def _trained(folder: Path, imported: Path, tokens: str | None) -> Path:
    """Return the export of the example's training on this text; `tokens` is what a stage gets instead of its own."""
    manifest = load_one(EXAMPLE, "ArcticTraining")
    spec = manifest["spec"]
    spec["model"]["from"] = {"uri": f"file://{imported}"}
    for source in spec["data"]["sources"]:
        source |= {"uri": f"file://{folder}/suites/{source['category']}.jsonl", "format": "jsonl"}
    for stage in spec["curriculum"]["stages"] if tokens else ():
        stage["tokens"] = tokens
        stage["learningRate"].pop("warmupTokens", None)
    del spec["template"], spec["evaluation"]
    file, volumes = folder / "training.json", folder / "volumes"
    file.write_text(json.dumps(manifest))
    volumes.mkdir(exist_ok=True)
    if not (found := list(volumes.glob(EXPORT))):
        _arctic("train", "-f", file, "--volumes", volumes)
        found = list(volumes.glob(EXPORT))
    return found[0].parent


def _evaluated(folder: Path, name: str, model: Path, *options: object) -> dict[str, Any]:
    """Return what the suites have found of a model."""
    output = folder / name
    if not (output / RESULTS).exists():
        suites = [f"--suite={suite}={folder}/suites/{file}" for suite, file in shipped.SUITES.items()]
        _arctic("evaluate", model, "--name", name, "-o", output, "--concurrency", CONCURRENCY, *suites, *options)
    note(f"the page: {output / 'report.html'}")
    found: dict[str, Any] = json.loads((output / RESULTS).read_text())["suites"]
    return found


def _arctic(*arguments: object) -> None:
    command = [sys.executable, "-c", "from arctic_cli.main import main; main()", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _row(folder: Path, suite: str, figure: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    scores = [_shown(model["figures"][figure]) for model in (before, after)]
    if suite == Perplexity.name:
        texts = _texts_of(folder, figure)
        return (f"{suite}, {figure}", str(len(texts)), *scores, _shown(asdict(_bits_gained(folder, texts)), "+"))
    paired = ""
    if before["main figure"] == figure:
        paired = _shown(asdict(difference(before["by question"], after["by question"])), "+")
    return (f"{suite}, {figure}", str(before["questions"]), *scores, paired)


def _texts_of(folder: Path, figure: str) -> list[str]:
    """Return the texts of a category's figure, as they are called in what is kept of their reading."""
    rows = map(json.loads, (folder / "suites" / shipped.SUITES[Perplexity.name]).read_text().splitlines())
    return [f"{Perplexity.name}/{number}" for number, row in enumerate(rows) if f"{BITS}{row['category']}" == figure]


def _bits_gained(folder: Path, texts: Sequence[str]) -> Score:
    """Return by how many bits a byte the tuned model's figure is above the imported one's, paired by the texts."""
    before, after = (
        {line["question"]: line for line in read_lines(folder / name / Perplexity.name / READ)}
        for name in ("imported", "tuned")
    )
    sizes = [before[text]["bytes"] for text in texts]
    gained = [
        (after[text]["nats"] - before[text]["nats"]) / math.log(2) / size
        for text, size in zip(texts, sizes, strict=True)
    ]
    return score(Parts(tuple(gained), tuple(map(float, sizes))))


def _shown(found: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (format(found[name], f"{sign}.3f") for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _word(suite: str, figure: str) -> str:
    """Return a figure's name in the last line."""
    if suite == Perplexity.name:
        return f"bits_{figure.removeprefix(BITS)}"
    return re.sub(r"\W", "_", f"{suite} {figure}" if len(TOLD[suite]) > 1 else suite)


if __name__ == "__main__":
    main()
