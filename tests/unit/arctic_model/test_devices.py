from pathlib import Path

import pytest

from arctic_model.devices import shows_gpus


@pytest.mark.parametrize(
    ("files", "there"),
    [(["nvidia0"], True), (["nvidia5", "nvidiactl"], True), (["nvidiactl", "nvidia-uvm", "null"], False), ([], False)],
)
def test_a_gpu_is_seen_by_its_own_file_whatever_its_number(files: list[str], there: bool, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert shows_gpus(tmp_path) == there
