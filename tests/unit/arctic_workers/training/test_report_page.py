"""The page of a run, as the XML that its drawings are and the words that people read."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import Report, TrainingWorld
from arctic_cli.main import main
from arctic_workers.training.journal import EVENTS, JOURNAL
from arctic_workers.training.report import Run, page
from arctic_workers.training.report.drawing import lines, thinned
from arctic_workers.training.report.run import STAGES
from arctic_workers.training.supervisor import leave_page

SVG = re.compile("<svg.*?</svg>", re.DOTALL)
BOOKS = {
    "name": "books",
    "documents": 1200,
    "skipped": 3,
    "tokens": 5000,
    "plannedEpochs": 2.5,
    "unusedSplits": ["test"],
}


def entry(step: int, attempt: int = 1, stage: str = "general", layers: int = 1, **changes: Any) -> dict[str, Any]:
    load = [0.7, 0.3, 0.0, 0.0]
    routers = [{"layer": i, "load": load, "entropy": 0.9, "dead": [3], "dropped": 0.0} for i in range(layers)]
    return {
        "time": f"2026-01-01T00:00:{step:02}Z",
        "attempt": attempt,
        "stage": stage,
        "step": step,
        "tokens": step * 1000,
        "loss": 5.0 - step / 10,
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "tokens_per_second": 100.0,
        "mfu": 0.25,
        "seconds": {"data": 1.0, "compute": 3.0},
        "loss_by_source": {"books": 4.0},
        "epochs": {"books": step / 10},
        "routers": routers,
        "exposed_communication": [
            {"layer": 0, "kind": kind, "backward": backward, "in_flight": 2.0, "exposed": 0.1 * step}
            for kind, backward in (("dispatch", False), ("combine", False), ("dispatch", True), ("combine", True))
        ]
        + [{"layer": None, "kind": "gradients", "backward": True, "in_flight": 2.0, "exposed": 2.0}],
        "expert_chunks": 4,
    } | changes


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in entries))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two stages, whose first attempt was lost after step 6 and whose second one goes on from step 4."""
    folder = tmp_path / "tiny-0a1b2"
    folder.mkdir()
    first = [entry(step) for step in range(1, 7)]
    second = [entry(5, 2), *(entry(step, 2, "code <&>") for step in range(6, 12))]
    write(folder / JOURNAL, [*first, *second])
    write(
        folder / EVENTS,
        [
            {"attempt": 1, "kind": "AttemptBegan", "step": 0, "ranks": 4, "time": "2026-01-01T00:00:00Z"},
            {"attempt": 2, "kind": "AttemptBegan", "step": 4, "ranks": 2, "time": "2026-01-01T01:00:00Z"}
            | {"sources": [BOOKS, {"name": "validation.proofs", "documents": 7, "skipped": 0, "tokens": 0}]},
            {"attempt": 2, "kind": "LossSpike", "step": 8, "stage": "code <&>", "loss": 9.0, "limit": 4.5}
            | {"policy": "skip", "time": "2026-01-01T01:00:30Z"},
        ],
    )
    notes = [("general", "start", 6.0), ("general", "end", 4.0), ("code <&>", "start", 5.0)]
    write(
        folder / STAGES,
        [{"stage": s, "moment": m, "held_out_loss": loss, "category": "general"} for s, m, loss in notes],
    )
    return folder


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html.partition("</style>")[2]))


def test_the_page_has_what_holds_of_each_stage_and_attempt(folder: Path) -> None:
    run = Run.read(folder)
    assert [line["step"] for line in run.entries] == list(range(1, 12))
    assert [(s.name, s.first_tokens, s.last_tokens) for s in run.stages] == [
        ("general", 0, 5000),
        ("code <&>", 5000, 11000),
    ]
    text = words(page(run))
    assert "general 5k 4.9000 4.5000 general 6.0000 4.0000" in text
    assert "code &lt;&amp;&gt; 6k 4.4000 3.9000 general 5.0000" in text
    assert "1 2026-01-01T00:00:00Z 0 4 no word of an end" in text
    assert "8 code &lt;&amp;&gt; 9.0000 4.5000 skip" in text
    assert "in 4 chunks: layer combine, forward dispatch, forward combine, backward dispatch, backward" in text
    assert "0 55% 55% 55% 55%" in text


def test_the_page_needs_nothing_outside_itself_and_its_drawings_are_xml(folder: Path) -> None:
    html = page(Run.read(folder))
    assert not re.search(r"(src|href|@import|url\()", html)
    drawings = [ElementTree.fromstring(svg) for svg in SVG.findall(html)]
    assert len(drawings) == 12
    titles = [title.text for svg in drawings for title in svg.iter("title")]
    assert "layer 0, expert 3: 0.00" in titles
    assert "compute 75.0%, 3.0 s" in titles


def test_the_page_says_what_was_found_in_each_source_and_how_often_it_was_read(folder: Path) -> None:
    text = words(page(Run.read(folder)))
    assert "books 1,200 3 5,000 1.10 2.50 test" in text
    assert "validation.proofs 7 0 0 0.00 0.00" in text


def test_dropped_tokens_are_drawn_where_there_are_any(folder: Path) -> None:
    assert "Dropped tokens" not in page(Run.read(folder))
    [router] = entry(1)["routers"]
    write(folder / JOURNAL, [entry(step, routers=[router | {"dropped": step / 8}]) for step in (1, 2)])
    figures = page(Run.read(folder)).split("<figure")
    [dropped] = [figure for figure in figures if "Dropped tokens" in figure]
    assert "layer 0" in dropped


def test_what_is_exposed_is_told_by_layer_and_of_what_belongs_to_none_as_a_curve(folder: Path) -> None:
    html = page(Run.read(folder))
    [figure] = [figure for figure in html.split("<figure") if "Exposed share" in figure]
    assert all(name in figure for name in ("all", "combine, backward", "gradients"))
    kinds = "combine, forward dispatch, forward combine, backward dispatch, backward"
    assert f"layer {kinds} 0 55% 55% 55% 55%" in words(html)
    dense = [part for part in entry(1)["exposed_communication"] if part["layer"] is None]
    write(folder / JOURNAL, [entry(step, exposed_communication=dense) for step in (1, 2)])
    assert "exposed at the end" not in page(Run.read(folder))


def test_many_layers_are_drawn_as_their_range(folder: Path) -> None:
    write(folder / JOURNAL, [entry(step, layers=35) for step in (1, 2)])
    html = page(Run.read(folder))
    assert "greatest" in html
    assert "layer 34, expert 1" in html


def test_a_run_without_routers_or_with_one_step_or_with_a_loss_that_is_no_number_has_a_page(folder: Path) -> None:
    for entries in (
        [entry(1, routers=[], loss_by_source={}, mfu=0.0)],
        [entry(1), entry(2, gradient_norm=float("inf"))],
    ):
        write(folder / JOURNAL, entries)
        html = page(Run.read(folder))
        for svg in SVG.findall(html):
            ElementTree.fromstring(svg)
        assert "nan" not in html
    write(folder / JOURNAL, [])
    assert "no step has been recorded yet" in page(Run.read(folder))


def test_long_lines_are_thinned_to_means_and_nothing_drawn_for_nothing() -> None:
    points = [(float(x), float(x % 2)) for x in range(4000)]
    assert len(thinned(points)) == 400
    assert {y for _, y in thinned(points)} == {0.5}
    assert lines("", "", {"a": [(1.0, float("nan"))]}) == ""


def test_the_command_writes_the_page_beside_the_run_or_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    asked = CliRunner().invoke(main, ["report", str(folder)])
    assert (asked.exit_code, asked.output) == (0, f"{folder}/report.html\n")
    elsewhere = tmp_path / "elsewhere.html"
    assert CliRunner().invoke(main, ["report", str(folder), "-o", str(elsewhere)]).exit_code == 0
    assert elsewhere.read_text() == (folder / "report.html").read_text()
    no_run = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert no_run.exit_code == 1
    assert "has no journal.jsonl: name the folder of a run" in no_run.output


def test_a_supervisor_leaves_the_end_of_its_attempt_and_the_page(
    folder: Path, spec_of: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec: ArcticTrainingSpec = spec_of([{"tokens": 16}], 16)
    world = TrainingWorld(
        namespace="n", name="t", uid="u", first_host="h", spec=spec, attempt=2, epoch=2, run_folder=str(folder)
    )
    leave_page(world, Report(outcome="failed", reason="RanksLost", message="killed <b>", step=11))
    assert "2 2026-01-01T01:00:00Z 4 2 11 RanksLost killed &lt;b&gt;" in words((folder / "report.html").read_text())
    leave_page(world.model_copy(update={"run_folder": str(tmp_path / "none")}), Report(outcome="refused"))
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    leave_page(world, Report(outcome="failed"))
    assert "The page of the run could not be written" in caplog.text
