import errno
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.training.hang.pulse import Pulse, Pulsing


def test_a_rank_without_room_for_its_pulse_leaves_none_that_looks_still_until_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    pulsing, path = Pulsing(None, 3, dict, on_cpu=True), tmp_path / "pulse-0"
    pulsing.write(path)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        pulsing.write(path)
    assert list(tmp_path.glob("pulse-0")) == []
    pulsing.write(path)
    assert Pulse.read(path).rank == 3
