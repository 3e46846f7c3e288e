"""A real training of one rank, from the supervisor to the export, that sends its trace to a real collector."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from collector import Span, collecting
from small_specs import TRAINING_SPEC

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import NODE_RANK_VARIABLE, TRACES_VARIABLE, WORLD_VARIABLE, Ports, Report, TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_workers.control.ports import free_ports
from arctic_workers.control.traces import made_by_operator

pytestmark = pytest.mark.processes

UID = "0a1b2c3d-0000-4000-8000-000000000001"
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_local_experts=4
)


def world_of(folder: Path, attempt: int, **changes: Any) -> TrainingWorld:
    """A curriculum of two stages with two and one steps, and a checkpoint in the middle of the first."""
    stage = {"mixture": {"books": 1}, "learningRate": {"peak": 0.001}, "sequenceLength": 16}
    spec = TRAINING_SPEC | {
        "model": {"config": CONFIG.to_dict()},
        "tokenizer": {"train": {"vocabSize": 300}},
        "data": {
            "sources": [{"name": "books", "category": "general", "uri": f"file://{folder}/books"}],
            "validation": {"fraction": 0.2},
        },
        "curriculum": {
            "stages": [{"name": "first", "tokens": 128} | stage, {"name": "second", "tokens": 64} | stage],
        },
        "batch": {"tokensPerStep": 64, "microBatchSize": 4},
        "parallelism": {"nodes": 1},
        "checkpoint": {"volume": {"claimName": "c"}, "every": {"steps": 1}},
        "evaluation": {"suites": ["perplexity"]},
    }
    control, metrics, rendezvous = free_ports(3)
    return TrainingWorld(
        namespace="team",
        name="tiny",
        uid=UID,
        first_host="127.0.0.1",
        ports=Ports(control=control, metrics=metrics, rendezvous=rendezvous),
        tls_folder=None,
        termination_message=str(folder / "termination-log"),
        spec=ArcticTrainingSpec.model_validate(spec | changes),
        attempt=attempt,
        epoch=attempt,
        run_folder=str(folder / "run"),
    )


def run(world: TrainingWorld, endpoint: str) -> Report:
    told = {WORLD_VARIABLE: world.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: "0", TRACES_VARIABLE: endpoint}
    done = subprocess.run(
        [sys.executable, "-m", "arctic_workers.training"],
        env=os.environ | told | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    report = Report.model_validate_json(Path(world.termination_message).read_text())
    assert report.outcome in ("succeeded", "refused"), done.stderr[-3000:]
    return report


def named(spans: list[Span], name: str) -> list[Span]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.begun)


def test_an_attempt_is_told_with_its_stages_and_what_was_done_in_them(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for number in range(20):
        (tmp_path / "books" / f"{number}.txt").write_text(f"it was the best of {number} times, it was the worst " * 9)
    world = world_of(tmp_path, 1)
    with collecting() as collector:
        assert run(world, collector.url).outcome == "succeeded"
        spans = collector.spans  # all were sent before the pod has ended
    (attempt,) = named(spans, "attempt")
    assert (attempt.trace, attempt.parent, attempt.error) == (f"{made_by_operator(world).trace:032x}", "", "")
    told = {name: attempt.attributes[f"arctic.{name}"] for name in ("attempt", "outcome", "step", "tokens")}
    assert told == {"attempt": 1, "outcome": "succeeded", "step": 3, "tokens": 192}
    assert (attempt.about["service.name"], attempt.about["k8s.namespace.name"]) == ("arctic-training", "team")
    first, second = named(spans, "stage")
    for stage, name, steps in ((first, "first", 2), (second, "second", 1)):
        assert (stage.trace, stage.parent) == (attempt.trace, attempt.id)
        assert (stage.attributes["arctic.stage"], stage.attributes["arctic.stage.done"]) == (name, True)
        assert stage.attributes["arctic.stage.steps"] == steps
    assert attempt.begun < first.begun < first.ended <= second.begun < second.ended < attempt.ended
    written = {span.attributes["arctic.step"]: span.parent for span in named(spans, "checkpoint")}
    assert written == {1: first.id, 2: first.id, 3: second.id}
    judged = [(span.attributes["arctic.step"], span.parent) for span in named(spans, "evaluation")]
    assert judged == [(2, first.id), (3, second.id)]
    (export,) = named(spans, "export")
    assert (export.attributes["arctic.step"], export.parent) == (3, attempt.id)
    assert {span.name for span in spans} == {"attempt", "stage", "checkpoint", "evaluation", "export"}


def test_an_attempt_that_fails_says_why(tmp_path: Path) -> None:
    world = world_of(tmp_path, 2)  # whose books are not there
    with collecting() as collector:
        report = run(world, collector.url)
        attempt = collector.one("attempt")
    assert report.reason == attempt.attributes["arctic.reason"] == "SourceNotFound"
    assert attempt.error == report.message
