from pathlib import Path

from arctic_workers.control import cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_a_containers_cpu_quota_counts_in_both_versions(tmp_path: Path) -> None:
    assert cores._cgroup_quota(write(tmp_path / "v2", {"cpu.max": "150000 100000\n"})) == (150000, 100000)
    assert cores._cgroup_quota(write(tmp_path / "max", {"cpu.max": "max 100000\n"})) is None
    first = {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}
    assert cores._cgroup_quota(write(tmp_path / "v1", first)) == (50000, 100000)
    assert cores._cgroup_quota(write(tmp_path / "no", first | {"cpu/cpu.cfs_quota_us": "-1"})) is None


def test_this_machine_has_a_core() -> None:
    assert cores.available_cores() >= 1
