"""`arctic plot` on what others have written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_specs import TRAINING_SPEC

from arctic_ablation.results import results
from arctic_ablation.study import Found, Point, VariantStudy
from arctic_api.ablation import ArcticAblationSpec
from arctic_cli.main import main

EXAMPLES = Path(__file__).parents[3] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"
SCORE = {"value": 0.5, "low": 0.4, "high": 0.6}
FORECAST = {"value": 2.0, "low": 1.9, "high": 2.1}
SWARM = {
    "forecasts": {"foretold": FORECAST, "by hand": FORECAST},
    "confirmed": {"foretold": [1.95, 2.05]},
    "effects": [{"stage": "late", "source": name, "change": 0.1, "deviation": 0.02} for name in ("books", "code")],
}


def plotted(place: Path, *files: Path) -> dict[str, str]:
    """Return the texts of the SVGs by name; each is there as a PNG too."""
    told = CliRunner().invoke(main, ["plot", *map(str, files), "-o", str(place / "plots")])
    assert told.exit_code == 0, told.output
    written = [Path(line) for line in told.output.splitlines()]
    assert sorted(written) == sorted((place / "plots").iterdir())
    pictures = {path.stem: path.read_bytes() for path in written if path.suffix == ".png"}
    assert all(picture.startswith(PNG) for picture in pictures.values())
    drawings = {path.stem: path.read_text() for path in written if path.suffix == ".svg"}
    assert drawings.keys() == pictures.keys()
    return drawings


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def ablation() -> dict[str, Any]:
    """What an ablation of two variants and two seeds has found."""
    grid = [{"field": "optimizer.weightDecay", "values": [0.0, 0.1]}]
    objective = {"perplexity": {"general": 1}}
    spec = ArcticAblationSpec.model_validate(
        {"training": TRAINING_SPEC, "grid": grid, "objective": objective, "seeds": 2, "target": {"tokens": "10M"}}
    )
    study = VariantStudy("decays", spec)
    found = {}
    for run in study.all_runs({}):
        worse = run.training["optimizer"]["weightDecay"] + 0.01 * run.seed
        shares = (0.1, 0.2, 0.4, 0.6, 1.0)
        losses = [(round(share * run.total), 2 + worse + (share + 0.1) ** -0.5) for share in shares]
        found[run.name] = Found([Point(tokens, {"perplexity/general": math.exp(loss)}) for tokens, loss in losses])
    return results("decays", spec, study, found, whole=True)


def evaluated(model: str) -> dict[str, Any]:
    """What an evaluation has found."""
    asked = {"state": "done", "main figure": "pass@1", "figures": {"pass@1": SCORE}, "failures": {"wrong": 3}}
    read = {"state": "done", "figures": {"perplexity, sql": FORECAST}, "failures": {}}
    suites = {"humaneval": asked, "perplexity": read, "spider": {"state": "not run", "why": "no data were given"}}
    total = {"state": "not run", "why": "missing: spider"}
    return {"model": model, "sampling": {}, "suites": suites, "enterprise intelligence": total}


def test_an_ablations_ranking_curves_and_power_law_are_drawn(tmp_path: Path) -> None:
    drawings = plotted(tmp_path, write(tmp_path / "results.json", ablation()))
    assert set(drawings) == {"ranking", "curves", "scaling"}


def test_what_a_swarm_foretells_is_drawn(tmp_path: Path) -> None:
    drawings = plotted(tmp_path, write(tmp_path / "results.json", ablation() | {"swarm": SWARM, "curves": {}}))
    assert set(drawings) == {"ranking", "scaling", "foretold", "effects"}


def test_one_model_is_drawn_and_two_side_by_side(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{name}.json", evaluated(name)) for name in ("base", "tuned"))
    assert set(plotted(tmp_path / "one", first)) == {"scores", "perplexities", "failures"}
    assert set(plotted(tmp_path / "two", first, second)) == {"scores", "perplexities", "failures-1", "failures-2"}


@pytest.mark.parametrize(
    ("example", "names"),
    [
        ("arctic-inference.yaml", {"memory", "throughput", "latency"}),
        ("arctic-training.yaml", {"memory", "step"}),
    ],
)
def test_a_plan_is_drawn_the_same_each_time(tmp_path: Path, example: str, names: set[str]) -> None:
    planned = CliRunner().invoke(
        main, ["plan", "-f", str(EXAMPLES / example), "--preset", "arctic", "--device", "h200", "-o", "json"]
    )
    file = tmp_path / "plan.json"
    file.write_text(planned.output)
    first, second = plotted(tmp_path / "first", file), plotted(tmp_path / "second", file)
    assert set(first) == names
    assert first == second


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (["[1]"], "is nothing that is drawn: name results.json"),
        (["{"], "can't be read as JSON"),
        (['{"ranks": [], "batches": []}'], "has no 'name': it was written by another release"),
        ([json.dumps(ablation()), json.dumps(evaluated("base"))], "can't be drawn together: evaluations can"),
        ([json.dumps(ablation())] * 2, "can't be drawn together: evaluations can"),
    ],
)
def test_what_can_not_be_drawn_is_said(tmp_path: Path, contents: list[str], words: str) -> None:
    files = [tmp_path / f"{number}.json" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    told = CliRunner().invoke(main, ["plot", *map(str, files), "-o", str(tmp_path / "plots")])
    assert told.exit_code == 1
    assert words in told.output
    assert not (tmp_path / "plots").exists()


def test_a_file_that_is_named_twice_is_not_drawn_together_with_itself(tmp_path: Path) -> None:
    file = write(tmp_path / "results.json", ablation())
    told = CliRunner().invoke(main, ["plot", str(file), str(file), "-o", str(tmp_path / "plots")])
    assert (told.exit_code, told.output) == (
        1,
        f"Error: {file} and {file} can't be drawn together: evaluations can, all else is drawn file by file\n",
    )
