"""Products shared out over threads: all done, each by one thread where it is large, and what they raise."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from arctic_workers.training.experts.team import LEAST, Job, share_out

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_large_jobs_are_done_by_several_threads_at_once_with_one_of_torch_each() -> None:
    both, seen = threading.Barrier(2), []

    def meet() -> None:
        both.wait(timeout=30)
        seen.append((threading.get_ident(), torch.get_num_threads()))

    share_out([Job(LEAST, meet), Job(LEAST, meet)], CPU)
    assert len({thread for thread, _ in seen}) == 2
    assert [threads for _, threads in seen] == [1, 1]
    assert torch.get_num_threads() == 2


def test_small_jobs_are_done_here_in_order_with_all_threads() -> None:
    seen: list[tuple[int, int, int]] = []

    def note(number: int) -> None:
        seen.append((number, threading.get_ident(), torch.get_num_threads()))

    share_out([Job(LEAST - 1, partial(note, number)) for number in range(3)], CPU)
    assert seen == [(number, threading.get_ident(), 2) for number in range(3)]


def test_a_job_has_one_thread_whether_or_not_others_are_large() -> None:
    seen: list[int] = []
    share_out([Job(1, list), Job(LEAST, lambda: seen.append(torch.get_num_threads()))], CPU)
    assert seen == [1]


def test_no_job_records_gradients() -> None:
    seen: list[bool] = []
    with torch.no_grad():  # as in the functions of autograd
        share_out([Job(LEAST, lambda: seen.append(torch.is_grad_enabled())) for _ in range(8)], CPU)
    assert seen == [False] * 8


def test_what_a_job_raises_is_raised_and_threads_are_as_before() -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        share_out([Job(LEAST, fail), Job(LEAST, list), Job(LEAST, list)], CPU)
    assert torch.get_num_threads() == 2
