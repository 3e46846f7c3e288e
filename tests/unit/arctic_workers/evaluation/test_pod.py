"""The pod of an evaluation, as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import collecting
from models import byte_tokenizer, write_model
from told_server import ROWS, TEXTS, Server, write

from arctic_api.evaluation import ArcticEvaluationSpec
from arctic_api.world import TRACES_VARIABLE, WORLD_VARIABLE, EvaluationReport, EvaluationWorld, ExitCode, Ports
from arctic_rpc.control_pb2 import WatchRequest, WorkerState
from arctic_rpc.control_pb2_grpc import ControlStub
from arctic_workers.control.ports import LOOPBACK, free_ports
from arctic_workers.control.traces import made_by_operator

pytestmark = pytest.mark.processes


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.holds.set()
    made.close()


@pytest.fixture
def told(tmp_path: Path, server: Server) -> dict[str, Any]:
    """What a pod is told that asks an API sums, and reads it texts."""
    gsm8k, texts = write(tmp_path / "test.jsonl", ROWS), write(tmp_path / "texts.jsonl", TEXTS)
    spec = {
        "model": {"endpoint": {"url": server.url, "model": "told"}},
        "suites": [{"name": "gsm8k", "uri": f"file://{gsm8k}"}, {"name": "perplexity", "uri": f"file://{texts}"}],
        "results": {"claimName": "store"},
        "concurrency": 1,
    }
    control, metrics = free_ports(2)
    return {
        "namespace": "team",
        "name": "judged",
        "uid": "2e5e7e0c-0000-4000-8000-000000000000",
        "ports": Ports(control=control, metrics=metrics),
        "tls_folder": None,
        "termination_message": str(tmp_path / "report.json"),
        "spec": ArcticEvaluationSpec.model_validate(spec),
        "job": "judged-2e5e7-r1",
        "folder": str(tmp_path / "store" / "judged"),
        "url": server.url,
        "model": "told",
    }


def start(told: dict[str, Any], traces: str = "") -> "subprocess.Popen[bytes]":
    world = EvaluationWorld.model_validate(told).model_dump_json(by_alias=True)
    command = [sys.executable, "-m", "arctic_workers.evaluation"]
    environment = os.environ | {WORLD_VARIABLE: world, TRACES_VARIABLE: traces}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def report(told: dict[str, Any]) -> EvaluationReport:
    return EvaluationReport.model_validate_json(Path(told["termination_message"]).read_bytes())


def test_an_api_is_asked_with_its_key_and_the_last_word_says_what_was_found(
    told: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "keys").write_text("first-key\nsecond-key\n")
    assert start(told | {"credentials_folder": str(secret)}).wait() == ExitCode.DONE
    assert server.keys == {"Bearer first-key"}
    said = report(told)
    gsm8k, perplexity = said.suites
    assert (said.outcome, said.enterprise_intelligence) == ("succeeded", None)
    assert "takes humaneval-plus, mbpp-plus, spider and ifeval" in said.message
    assert (gsm8k.state, gsm8k.answered, gsm8k.judged, gsm8k.planned) == ("Done", 6, 6, 6)
    assert (gsm8k.figures[0].name, gsm8k.figures[0].value) == ("strict match", 0.5)
    assert (perplexity.state, perplexity.answered) == ("Done", 2)
    results = json.loads((Path(told["folder"]) / "results.json").read_text())
    assert results["suites"]["gsm8k"]["figures"]["strict match"]["value"] == 0.5
    assert "told" in (Path(told["folder"]) / "report.html").read_text()


def test_its_page_shows_others_beside_it(told: dict[str, Any], tmp_path: Path) -> None:
    assert start(told).wait() == ExitCode.DONE
    second = {"folder": str(tmp_path / "store" / "second"), "model": "newer", "compared": [told["folder"]]}
    assert start(told | second).wait() == ExitCode.DONE
    shown = (tmp_path / "store" / "second" / "report.html").read_text()
    assert "newer and told" in shown
    assert "told over newer" in shown, "the difference, question by question"


def test_it_tells_how_far_it_is_ends_when_asked_and_the_next_pod_goes_on(told: dict[str, Any], server: Server) -> None:
    import grpc

    server.held_from = 2
    pod = start(told)
    with grpc.insecure_channel(f"{LOOPBACK}:{told['ports'].control}") as channel:
        states = ControlStub(channel).Watch(WatchRequest(), wait_for_ready=True)
        state: WorkerState = next(each for each in states if each.evaluation.suites and _answered(each) == 2)
        states.cancel()
    first, second = state.evaluation.suites
    assert (state.uid, first.name, first.state, first.planned) == (told["uid"], "gsm8k", "Running", 6)
    assert (second.name, second.state) == ("perplexity", "Waiting")
    assert server.held.wait(60)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait() == ExitCode.INTERRUPTED
    assert (report(told).outcome, report(told).suites[0].answered) == ("interrupted", 2)
    server.held_from = 1000
    server.holds.set()
    while len(server.asked) < 3:  # what the pod asked last is answered to nobody
        time.sleep(0.01)
    assert start(told).wait() == ExitCode.DONE
    assert len(server.asked) == 3 + 4 + len(TEXTS), "what was answered is not asked again"
    assert report(told).suites[0].answered == 6


def _answered(state: WorkerState) -> int:
    return state.evaluation.suites[0].answered


def test_weights_are_served_in_the_pod_and_the_server_ends_with_it(told: dict[str, Any], tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "tiny", byte_tokenizer()
    write_model(folder, tokenizer, vocab_size=tokenizer.get_vocab_size())
    texts = [suite for suite in told["spec"].suites if suite.name == "perplexity"]
    spec = told["spec"].model_copy(update={"suites": texts})
    weights = {"spec": spec, "url": None, "weights_folder": str(folder), "model": "tiny"}
    assert start(told | weights).wait() == ExitCode.DONE
    (perplexity,) = report(told).suites
    assert [figure.name for figure in perplexity.figures] == [
        f"{what}, {category}" for category in ("code", "sql") for what in ("perplexity", "bits a byte")
    ]
    served = [path for path in Path("/proc").glob("[0-9]*/environ") if str(folder).encode() in _read(path)]
    assert served == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"url": None, "weights_folder": "/nowhere"}, "/nowhere is not there: mount the claim that has it"),
        ({"url": None, "weights_folder": "{tmp}"}, "has no config.json"),
        ({"credentials_folder": "{tmp}/store"}, "the Secret has no key"),
        ({"spec": "gone.jsonl"}, "gsm8k: /gone.jsonl is not there: mount the claim that has it"),
        ({"spec": "a%20b/c#?.jsonl"}, "gsm8k: /a b/c#?.jsonl is not there"),
        ({"spec": "{tmp}/texts.jsonl"}, "texts.jsonl: line 1 has no question, answer"),
    ],
)
def test_bad_input_is_not_tried_again_and_says_what_to_do(
    wrong: dict[str, Any], words: str, told: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    changed = {name: value.replace("{tmp}", str(tmp_path)) if value else value for name, value in wrong.items()}
    if "spec" in changed:
        path = changed["spec"]
        uri = f"file://{path}" if path.startswith("/") else f"file:///{path}"
        suites = [{"name": "gsm8k", "uri": uri}]
        changed["spec"] = ArcticEvaluationSpec.model_validate(told["spec"].wire() | {"suites": suites})
    assert start(told | changed).wait() == ExitCode.BAD_INPUT
    said = report(told)
    assert said.outcome == "refused"
    assert words in said.message
    assert said.suites[0].state == "Waiting"


def test_an_api_that_does_not_answer_fails_the_pod(told: dict[str, Any], server: Server) -> None:
    server.most = 1
    assert start(told).wait() == 1
    said = report(told)
    assert (said.outcome, said.reason) == ("failed", "EndpointError")
    assert "answers 401" in said.message


def test_its_suites_are_told_in_the_evaluations_trace(told: dict[str, Any]) -> None:
    with collecting() as collector:
        assert start(told, collector.url).wait() == ExitCode.DONE
        spans = collector.spans  # all were sent before the pod has ended
    place = made_by_operator(EvaluationWorld.model_validate(told))
    (whole,) = (span for span in spans if span.name == "evaluation")
    assert (whole.trace, whole.parent, whole.error) == (f"{place.trace:032x}", "", "")
    assert (whole.attributes["arctic.outcome"], whole.about["service.name"]) == ("succeeded", "arctic-evaluation")
    load, *suites = sorted((span for span in spans if span is not whole), key=lambda span: span.begun)
    assert {span.parent for span in (load, *suites)} == {whole.id}
    found = [tuple(suite.attributes[f"arctic.suite{part}"] for part in ("", ".state", ".answered")) for suite in suites]
    assert (load.name, found) == ("load", [("gsm8k", "Done", 6), ("perplexity", "Done", 2)])
    gsm8k, perplexity = suites
    assert load.begun < load.ended < gsm8k.begun < gsm8k.ended < perplexity.begun < perplexity.ended < whole.ended


def test_a_suite_that_the_pod_fails_in_is_told_as_far_as_it_came(told: dict[str, Any], server: Server) -> None:
    server.most = 1
    with collecting() as collector:
        assert start(told, collector.url).wait() == 1
        whole, suite = collector.one("evaluation"), collector.one("suite")
    assert "answers 401" in whole.error
    assert (suite.attributes["arctic.suite.state"], suite.attributes["arctic.suite.answered"]) == ("Running", 1)


def test_the_server_of_the_weights_sends_no_traces_of_its_own(told: dict[str, Any], tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "tiny", byte_tokenizer()
    write_model(folder, tokenizer, vocab_size=tokenizer.get_vocab_size())
    texts = [suite for suite in told["spec"].suites if suite.name == "perplexity"]
    spec = told["spec"].model_copy(update={"suites": texts})
    with collecting() as collector:
        pod = start(told | {"spec": spec, "url": None, "weights_folder": str(folder)}, collector.url)
        assert pod.wait() == ExitCode.DONE
        assert {span.trace for span in collector.spans} == {collector.one("evaluation").trace}
        assert len(collector.spans) == 3
