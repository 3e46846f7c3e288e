"""Real groups over HTTP: two pods, as the leader's engine and a follower, and a pod of two ranks."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from groups import Group
from groups_of_vllm import make_group

pytestmark = pytest.mark.timeout(900)

ASKED = {"model": "tiny", "prompt": "The operator", "max_tokens": 24, "temperature": 0}


@pytest.fixture
def pair(model_folder: Path, tmp_path: Path) -> Iterator[Group]:
    """Two pods."""
    yield from started(model_folder, tmp_path, pipeline=2)


def started(model: Path, folder: Path, **parallelism: int) -> Iterator[Group]:
    group = Group(make_group(model, folder, **parallelism))
    try:
        group.wait_until_ready()
        yield group
    finally:
        group.end()


def ask(group: Group, **changes: object) -> httpx.Response:
    return httpx.post(f"{group.url}/v1/completions", json=ASKED | changes, timeout=120)


def text(group: Group, **changes: object) -> str:
    answer = ask(group, **changes)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def streamed(group: Group) -> str:
    with httpx.stream("POST", f"{group.url}/v1/completions", json=ASKED | {"stream": True}, timeout=120) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def listening(process: psutil.Process) -> set[str]:
    """Addresses at which a process of a pod, or one that it started, can be reached."""
    family = [process, *process.children(recursive=True)]
    connections = [each for one in family for each in one.net_connections("inet")]
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


async def test_two_pods_answer_measure_and_end_together_when_the_follower_is_told_to(pair: Group) -> None:
    whole = text(pair)
    assert streamed(pair) == text(pair, logprobs=2) == whole
    drawn = {"temperature": 1, "seed": 7}
    assert text(pair, **drawn) == text(pair, **drawn)
    with httpx.stream("POST", f"{pair.url}/v1/completions", json=ASKED | {"stream": True, "max_tokens": 200}) as answer:
        next(answer.iter_lines())
    await pair.until_idle()
    assert await pair.metric("kv_cache_utilization") == 0
    assert await pair.metric("time_to_first_token_seconds_count") == 6
    assert "vllm" not in pair.metrics()
    assert ask(pair, max_tokens=300).status_code == 400
    reached = {address for pod in pair.processes for address in listening(psutil.Process(pod.pid))}
    assert reached <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    started = [child for pod in pair.processes for child in psutil.Process(pod.pid).children(recursive=True)]
    pair.processes[1].send_signal(signal.SIGTERM)
    assert [pod.wait(90) for pod in pair.processes] == [0, 0], pair.logs()
    assert not psutil.wait_procs(started, timeout=30)[1]
    assert {report(pair, rank)["outcome"] for rank in range(2)} == {"succeeded"}


@pytest.mark.parametrize(("lost", "left"), [(1, 0), (0, 1)])
def test_a_lost_pod_ends_the_other_at_once(pair: Group, lost: int, left: int) -> None:
    started = [child for pod in pair.processes for child in psutil.Process(pod.pid).children(recursive=True)]
    pair.processes[lost].kill()
    assert pair.processes[left].wait(30) == 1
    assert f"the connection to rank {lost} broke" in report(pair, left)["message"]
    # Nobody else would end what a pod started: here is no container.
    assert not psutil.wait_procs(started, timeout=30)[1]


def test_a_lost_rank_ends_both_pods(pair: Group) -> None:
    [worker] = psutil.Process(pair.processes[1].pid).children()[-1:]
    worker.kill()
    assert [pod.wait(60) for pod in pair.processes] == [1, 1]
    assert "a rank of this pod ended" in report(pair, 1)["message"]


def test_two_ranks_in_a_pod_answer_and_end_in_order(model_folder: Path, tmp_path: Path) -> None:
    for group in started(model_folder, tmp_path, tensor=2):
        assert streamed(group) == text(group)
        group.processes[0].send_signal(signal.SIGTERM)
        assert group.processes[0].wait(90) == 0, group.logs()


def report(group: Group, rank: int) -> dict[str, str]:
    """What a pod left at its end."""
    found: dict[str, str] = json.loads(Path(group.worlds[rank].termination_message).read_text())
    return found
