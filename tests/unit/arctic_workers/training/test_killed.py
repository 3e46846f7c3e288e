from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from arctic_api.world import Report
from arctic_workers.control.memory import Memory
from arctic_workers.training.killed import leave_word, with_memory
from arctic_workers.training.outcome import OUTCOME_VARIABLE, read_outcomes


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [(-9, ["rank 3 was killed by SIGKILL"]), (-11, ["rank 3 was killed by SIGSEGV"]), (-6, []), (1, [])],
)
def test_a_rank_that_a_signal_has_ended_is_named_and_one_that_aborts_or_fails_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int, words: list[str]
) -> None:
    monkeypatch.setenv(OUTCOME_VARIABLE, str(tmp_path))
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=exit_code, error_file="")
    leave_word(ChildFailedError("rank", {3: failure}), epoch=2)
    assert [(report.message, report.epoch) for report in read_outcomes(tmp_path)] == [(word, 2) for word in words]


@pytest.mark.parametrize(
    ("reason", "kills", "told"), [("RankKilled", 1, True), ("RankKilled", 0, False), ("Bad", 1, False)]
)
def test_the_memory_is_blamed_for_what_left_no_word_when_the_kernel_has_killed_for_it(
    reason: str, kills: int, told: bool
) -> None:
    report = Report(outcome="failed", reason=reason, message="rank 3 was killed by SIGKILL")
    after = with_memory(report, Memory(None, None, 0), Memory(2**31, 2**31, kills))
    assert (after.reason == "OOMKilled") == told
    assert after.message.endswith("the container used 2 GiB at most, of 2 GiB that it may") == told
