"""The process beside a NIM, over a stand-in that speaks its HTTP: when it is ready, what it tells, how it drains."""

import concurrent.futures
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from groups import Group
from nim import NimServer

from arctic_api.world import InferenceGroup
from arctic_rpc import control_pb2, control_pb2_grpc
from arctic_workers.control.commands import NotNow
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.nim import sidecar
from arctic_workers.inference.engines.nim.client import Nim
from arctic_workers.inference.engines.nim.sidecar import Sidecar
from arctic_workers.inference.pod import Pod

pytestmark = pytest.mark.processes

MakeGroup = Callable[..., list[InferenceGroup]]
SPEC: dict[str, Any] = {"engine": {"name": "nim", "image": "nim:1"}, "model": {"inImage": True}}


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Pods take signals over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Beside:
    """A sidecar that runs in a thread, what it tells the operator, and the NIM if it has one."""

    def __init__(self, group: InferenceGroup) -> None:
        self.pod = Pod(group, 0)
        self.told: list[Any] = []
        self.pod.publish = lambda phase, state=None: self.told.append(state)  # type: ignore[method-assign]
        self.sidecar = Sidecar(self.pod, Nim(group.ports.http, group.served_name))
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.nim: NimServer | None = None
        self.asking: list[threading.Thread] = []

    def _run(self) -> None:
        try:
            self.sidecar.run()
        except Refused as error:
            self.error = error

    def start_nim(self, model: str = "tiny", *, healthy: bool = True) -> NimServer:
        nim = NimServer(self.pod.group.ports.http, model)
        nim.healthy = healthy
        self.nim = nim.start()
        return nim

    def ask(self) -> None:
        """Send a request that runs until `let_go`, and return once the sidecar knows of it."""
        assert self.nim is not None
        self.nim.go.clear()
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
        url = f"http://127.0.0.1:{self.pod.group.ports.http}/v1/completions"
        self.asking.append(threading.Thread(target=lambda: httpx.post(url, json=body, timeout=None)))
        self.asking[-1].start()
        self.until(lambda: self.sidecar.figures is not None and self.sidecar.figures.running == 1)

    def let_go(self) -> None:
        """Let what runs end."""
        assert self.nim is not None
        self.nim.go.set()
        for thread in self.asking:
            thread.join()

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.thread.is_alive()
            time.sleep(0.01)

    def until_ready(self) -> None:
        self.until(self.pod.ready)

    def end(self) -> None:
        self.pod.stop.request()
        self.thread.join()
        if self.nim:
            self.let_go()
            self.nim.end()


@pytest.fixture
def beside(make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    monkeypatch.setattr(sidecar, "POLL", 0.02)
    monkeypatch.setattr(sidecar, "LINGER", 0.1)
    [group] = make_group(1, rollout={"drainTimeout": "100s"}, **SPEC)
    it = Beside(group)
    yield it
    it.end()


def test_ready_is_a_nim_that_says_so_and_answers_a_token(beside: Beside) -> None:
    nim = beside.start_nim(healthy=False)
    beside.until(lambda: len(beside.told) > 3)
    assert not beside.pod.ready()
    assert nim.asked == []
    nim.healthy = True
    beside.until_ready()
    assert [(request["model"], request["max_tokens"]) for request in nim.asked] == [("tiny", 1)]
    nim.healthy = False
    beside.until(lambda: not beside.pod.ready())


def test_a_container_that_began_anew_answers_a_token_before_it_is_ready_again(beside: Beside) -> None:
    beside.start_nim()
    beside.until_ready()
    assert beside.nim is not None
    beside.nim.end()
    beside.until(lambda: not beside.pod.ready())
    again = beside.start_nim()
    beside.until_ready()
    assert len(again.asked) == 1


def test_a_container_that_began_anew_between_two_looks_is_noticed_by_its_counters(beside: Beside) -> None:
    nim = beside.start_nim()
    beside.until_ready()
    beside.until(lambda: beside.sidecar.figures is not None and beside.sidecar.figures.generated_tokens == 1)
    assert beside.sidecar.drained()
    nim.tokens = 0
    beside.until(lambda: len(nim.asked) == 2)
    beside.until_ready()


def test_a_nim_that_serves_another_name_is_refused_in_words(beside: Beside) -> None:
    beside.start_nim(model="another")
    beside.thread.join()
    assert "by model tiny with 404" in str(beside.error)
    assert "does not exist" in str(beside.error)


def test_what_runs_is_told_and_drained_before_the_container_may_end(beside: Beside) -> None:
    beside.start_nim()
    beside.until_ready()
    beside.ask()
    beside.until(lambda: beside.told[-1].running == 1)
    assert beside.told[-1].kv_cache_utilization == 0.1
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        drained = pool.submit(beside.sidecar.drained)
        beside.until(lambda: bool(beside.told[-1].draining))
        assert not drained.done()
        beside.let_go()
        assert drained.result()
    assert not beside.pod.ready()
    assert beside.nim is not None
    assert (beside.nim.running, beside.nim.finished) == (0, 2)
    assert beside.told[-1].draining
    assert beside.told[-1].running == 0


def test_what_the_gateway_sends_before_it_knows_is_drained_too(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "LINGER", 100.0)
    nim = beside.start_nim()
    beside.until_ready()
    beside.until(lambda: beside.sidecar._idle_looks > sidecar.IDLE_LOOKS)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        drained = pool.submit(beside.sidecar.drained)
        beside.until(lambda: not beside.pod.ready())
        beside.ask()
        monkeypatch.setattr(sidecar, "LINGER", 0.1)
        beside.let_go()
        assert drained.result()
    assert (nim.running, nim.finished) == (0, 2)


def test_the_operators_drain_leaves_it_ready_and_tells_when_nothing_is_left(beside: Beside) -> None:
    with pytest.raises(NotNow):
        beside.sidecar.drain(1)
    beside.start_nim()
    beside.until_ready()
    beside.ask()
    beside.sidecar.drain(1)
    beside.until(lambda: bool(beside.told[-1].draining))
    assert beside.told[-1].running == 1
    assert beside.pod.ready()
    beside.let_go()
    beside.until(lambda: beside.told[-1].running == 0)


def test_a_drain_ends_after_its_time_and_says_that_requests_are_left(beside: Beside) -> None:
    beside.start_nim()
    beside.until_ready()
    beside.ask()
    beside.sidecar._drain_timeout = 0.5
    assert not beside.sidecar.drained()


def test_a_nim_whose_requests_cannot_be_counted_is_drained_for_the_whole_time(beside: Beside) -> None:
    nim = beside.start_nim()
    nim.with_metrics = False
    beside.until_ready()
    beside.sidecar.drain(1)
    beside.until(lambda: bool(beside.told[-1].draining))
    assert beside.told[-1].running == 1, "the operator deletes what has none"
    beside.sidecar._drain_timeout = 0.5
    assert not beside.sidecar.drained()


def test_there_is_nothing_to_drain_before_it_is_ready_or_after_its_end(beside: Beside) -> None:
    assert beside.sidecar.drained()
    nim = beside.start_nim(healthy=False)
    beside.until(lambda: beside.sidecar.figures is not None)
    assert beside.sidecar.drained()
    nim.healthy = True
    looks = len(beside.told)
    beside.until(lambda: len(beside.told) > looks + 2)
    assert not beside.pod.ready(), "its pod is about to end"


def test_a_restart_of_the_container_alone_does_not_end_the_pod(beside: Beside) -> None:
    beside.start_nim()
    beside.until_ready()
    assert beside.sidecar.drained()
    assert beside.nim is not None
    beside.nim.end()
    beside.until(lambda: beside.sidecar.figures is None)
    beside.start_nim()
    beside.until_ready()
    assert not beside.told[-1].draining


def test_the_process_shows_metrics_answers_the_hook_and_ends_when_told(make_group: MakeGroup) -> None:
    [group] = make_group(1, **SPEC)
    nim = NimServer(group.ports.http, "tiny").start()
    it = Group([group])
    try:
        it.wait_until_ready()
        probes = f"http://127.0.0.1:{group.ports.metrics}"
        assert "arctic_inference_requests_running 0.0" in it.metrics()
        assert httpx.get(f"{probes}/drained/guess").status_code == 404
        with grpc.insecure_channel(f"127.0.0.1:{group.ports.control}") as channel:
            control = control_pb2_grpc.ControlStub(channel)
            control.Drain(control_pb2.DrainRequest(), timeout=60)
            assert next(control.Watch(control_pb2.WatchRequest(), timeout=60)).inference.ready
        assert httpx.get(f"{probes}{group.drained_path}", timeout=60).status_code == 200
        assert httpx.get(f"{probes}/readyz").status_code == 503
        it.processes[0].terminate()
        assert it.processes[0].wait(60) == 0
    finally:
        it.end()
        nim.end()
