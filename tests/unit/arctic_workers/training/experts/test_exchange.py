"""What is done while an exchange is under way: on a CPU until it has arrived, on a GPU all, before anything waits."""

from typing import Any

import deepspeed.comm
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from arctic_workers.training.experts.exchange import Exchange
from arctic_workers.training.experts.exposure import Flights


class Work:
    """An exchange that is done after so many looks at it."""

    def __init__(self, log: list[str], looks: int) -> None:
        self._log, self._looks = log, looks

    def is_completed(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def wait(self) -> None:
        self._log.append("wait")

    def get_future(self) -> Any:
        return self

    def add_done_callback(self, _: Any) -> None:
        self._log.append("watched")


def travel(device: str, looks: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Send rows with three jobs to do meanwhile, which takes so many looks; returns what was done, in order."""
    log: list[str] = []

    def launch(arriving: Any, rows: Any, *_: Any, **__: Any) -> Work:
        log.append("launch")
        return Work(log, looks)

    def job() -> bool:
        log.append("job")
        return log.count("job") < 4

    monkeypatch.setattr(deepspeed.comm, "all_to_all_single", launch)
    with FakeTensorMode():
        sent = Exchange(0, "dispatch", object(), [1, 1], [2, 2], Flights())
        sent.launch(torch.empty(2, 8, device=device))
        assert sent.wait(job).shape == (4, 8)
    return log


def test_a_cpu_works_until_rows_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    assert travel("cpu", 2, monkeypatch) == ["launch", "watched", "job", "job", "wait"]


@pytest.mark.parametrize("looks", [0, 2, 100])
def test_a_gpu_is_given_all_other_work_between_launch_and_wait(looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert travel("cuda", looks, monkeypatch) == ["launch", *["job"] * 4, "wait"]
