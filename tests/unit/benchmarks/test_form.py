"""The last line of a benchmark, and what comes before it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import form
from benchmarks.drawing import Chart
from benchmarks.form import Told, draw, finish, ratio, repeated
from benchmarks.results import Results, this_machine


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(form, "FILE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(form, "DRAWINGS", tmp_path / "drawings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "RESULTS.md"


def test_figures_are_kept_only_when_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(Told("serving", quick=False, keep=False), {"ratio": 0.5})
    assert not file.exists()
    finish(Told("serving", quick=False, keep=True), {"ratio": 0.123456})
    assert Results(file.read_text()).of(this_machine(), "serving") == {"ratio": 0.1235}
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [{"ratio": 0.5}, {"ratio": 0.1235}]
    assert said.err == ""


def test_what_has_become_worse_is_told_beside_the_figures(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"speed": 1.0, "memory": 1.0, "tokens": 100.0}
    finish(Told("endless", quick=False, keep=True), kept)
    now = {"speed": 0.5, "memory": 2.0, "tokens": 10.0}
    finish(Told("endless", quick=True, keep=False), now, less_is_better=("memory",), unjudged=("tokens",))
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == now
    assert [line.split()[1] for line in said.err.splitlines()] == ["memory", "speed"]


def test_a_drawing_is_kept_where_the_figures_are_and_shown_with_them(file: Path) -> None:
    chart = Chart("", "", "", {"line": [(0.0, 0.0), (1.0, 1.0)]})
    draw(Told("endless", quick=True, keep=False), chart, "perplexity")
    assert not list(file.parent.glob("drawings/*/*"))
    keeps = Told("endless", quick=False, keep=True)
    draw(keeps, chart, "perplexity")
    finish(keeps, {"ratio": 1.0})
    [drawn] = file.parent.glob("drawings/*/*")
    assert f"![perplexity]({drawn.relative_to(file.parent)})" in file.read_text()


def test_a_machine_that_slows_down_for_a_round_changes_no_ratio() -> None:
    assert ratio([10.0, 2.0, 10.0], [5.0, 1.0, 4.0]) == 2.0
    assert ratio([2.0, 10.0, 2.0], [1.0, 5.0, 1.0]) == 2.0


def test_what_is_soon_done_is_measured_again_and_the_median_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now, values = 0.0, iter([1.0, 9.0, 2.0])
    monkeypatch.setattr(form, "time", SimpleNamespace(monotonic=lambda: now))

    def measure() -> float:
        nonlocal now
        now += 1.0
        return next(values)

    assert repeated(measure, 2.5)() == 2.0
    assert repeated(lambda: 3.0, 0.0)() == 3.0
