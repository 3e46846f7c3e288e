import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_api.world import (
    CheckpointReport,
    EvaluationReport,
    FigureReport,
    Report,
    SourceReport,
    StageReport,
    SuiteReport,
)
from arctic_workers.control.report import LIMIT, encode, encode_evaluation, write_report

CHECKPOINT = CheckpointReport(step=7, tokens=700, uri="file:///store/7", time="2026-01-01T00:00:00Z")


def report(message: str, stages: int = 0, evaluation: dict[str, float] | None = None) -> Report:
    return Report(
        outcome="failed",
        reason="WorkerFailed",
        message=message,
        step=7,
        checkpoint=CHECKPOINT,
        export_uri="file:///export",
        stages=[StageReport(name=f"stage-{n}", tokens=n, checkpoint="file:///" + "c" * 500) for n in range(stages)],
        evaluation=evaluation,
    )


@settings(max_examples=40)
@given(st.text(max_size=6000), st.integers(0, 16), st.booleans())
def test_any_report_fits_and_keeps_what_decides(message: str, stages: int, judged: bool) -> None:
    evaluation = {f"suite-{n}" * 20: n / 7 for n in range(40)} if judged else None
    whole = report(message, stages, evaluation)
    content = encode(whole)
    assert len(content) <= LIMIT
    read = Report.model_validate_json(content)
    assert (read.outcome, read.reason, read.step, read.checkpoint, read.export_uri) == (
        "failed",
        "WorkerFailed",
        7,
        CHECKPOINT,
        "file:///export",
    )
    assert read.stages == whole.stages[len(whole.stages) - len(read.stages) :]


def test_a_report_that_fits_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    path.write_text("x" * 10_000)
    write_report(report("the disk is full", 2), str(path))
    assert Report.model_validate_json(path.read_bytes()) == report("the disk is full", 2)


def test_the_message_is_cut_before_any_stage() -> None:
    read = Report.model_validate_json(encode(report("é" * 6000, 3)))
    assert len(read.stages) == 3
    assert read.message.endswith("é…")
    assert len(encode(report("é" * 6000, 3))) > LIMIT - 16


def test_sources_are_cut_before_stages() -> None:
    sources = [SourceReport(name=f"source-{n}", tokens=n) for n in range(64)]
    read = Report.model_validate_json(encode(report("", 3).model_copy(update={"sources": sources})))
    assert (read.sources, len(read.stages)) == ([], 3)


def test_the_oldest_stages_are_cut_before_the_evaluation() -> None:
    read = Report.model_validate_json(encode(report("lost", 16, {"perplexity": 3.5})))
    assert read.message == ""
    assert [stage.name for stage in read.stages][-1] == "stage-15"
    assert read.evaluation == {"perplexity": 3.5}


def test_figures_that_have_no_room_are_told_to_be_none() -> None:
    """Without a word on them, a status would keep those of an earlier attempt."""
    figures = {f"perplexity of category {n}": 3.5 for n in range(400)}
    assert Report.model_validate_json(encode(report("", 0, figures))).evaluation == {}
    assert Report.model_validate_json(encode(report("", 0, None))).evaluation is None


def test_a_report_that_cannot_be_written_is_logged_and_nothing_is_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        write_report(report("the reason"), str(tmp_path / "no" / "folder"))
    assert "the reason" in caplog.text


def test_a_message_that_names_a_file_whose_name_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    named = os.fsdecode(b"/data/donn\xe9es is no JSON")
    write_report(report(named), str(path))
    assert Report.model_validate_json(path.read_bytes()).message == r"/data/donn\udce9es is no JSON"
    suite = SuiteReport(name="gsm8k", state="Unfit", answered=0, message=named)
    write_report(EvaluationReport(outcome="refused", message=named, suites=[suite]), str(path))
    told = EvaluationReport.model_validate_json(path.read_bytes())
    assert told.message == told.suites[0].message == r"/data/donn\udce9es is no JSON"


def test_the_report_is_in_camel_case_as_the_operator_reads_it() -> None:
    assert json.loads(encode(report("")))["exportUri"] == "file:///export"


@settings(max_examples=40)
@given(st.text(max_size=3000), st.integers(0, 12))
def test_any_evaluation_fits_and_keeps_each_suites_own_figure(message: str, figures: int) -> None:
    found = [FigureReport(name=f"{n}" * 20, value=n / 7, low=n / 9, high=n / 3) for n in range(figures)]
    suites = [SuiteReport(name=f"suite-{n}", state="Done", figures=found, message=message) for n in range(7)]
    content = encode_evaluation(EvaluationReport(outcome="succeeded", message=message, suites=suites))
    assert len(content) <= LIMIT
    read = EvaluationReport.model_validate_json(content)
    assert [suite.name for suite in read.suites] == [suite.name for suite in suites]
    if message.isascii() and figures:
        assert all(suite.figures[0] == found[0] for suite in read.suites)


def test_an_evaluation_that_is_short_is_told_whole() -> None:
    suite = SuiteReport(name="gsm8k", state="Unfit", answered=0, message="why")
    whole = EvaluationReport(outcome="succeeded", reason="Done", message="m", suites=[suite])
    assert EvaluationReport.model_validate_json(encode_evaluation(whole)) == whole
