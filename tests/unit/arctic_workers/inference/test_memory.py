"""Room under the limits of a container."""

from pathlib import Path

from arctic_workers.inference import memory


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_a_containers_memory_limit_counts_in_both_versions(tmp_path: Path) -> None:
    second = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 5\ninactive_file 200\n"}
    assert memory._cgroup_memory(write(tmp_path / "v2", second)) == [(1000, 500)]
    first = {
        "memory/memory.limit_in_bytes": "1000",
        "memory/memory.usage_in_bytes": "600",
        "memory/memory.stat": "cache 300\ntotal_inactive_file 100\n",
    }
    assert memory._cgroup_memory(write(tmp_path / "v1", first)) == [(1000, 500)]
    assert memory._cgroup_memory(write(tmp_path / "max", second | {"memory.max": "max\n"})) == []
    assert memory._cgroup_memory(tmp_path / "none") == []


def test_this_machine_has_room() -> None:
    assert memory.available_memory() > 2**20


def test_the_cache_takes_a_share_of_the_memory_and_no_more_than_is_of_use() -> None:
    assert memory.affordable_blocks(1000, fraction=0.5, block_bytes=100, most=99) == 5
    assert memory.affordable_blocks(10**6, fraction=0.5, block_bytes=100, most=99) == 99
