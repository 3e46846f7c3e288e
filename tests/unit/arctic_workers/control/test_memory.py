from pathlib import Path

import pytest

from arctic_workers.control.memory import Memory, _left_of_limit, available_memory, readable


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_both_versions_of_cgroups_are_read(tmp_path: Path) -> None:
    events = "low 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n"
    two = write(
        tmp_path / "two", memory_DOT_max="2147483648\n", memory_DOT_peak="2147000000\n", memory_DOT_events=events
    )
    assert Memory.now(two) == Memory(most=2_147_000_000, limit=2**31, kills=2)
    one = write(
        tmp_path / "one",
        **{
            "memory__memory.limit_in_bytes": "2147483648\n",
            "memory__memory.max_usage_in_bytes": "2147000000\n",
            "memory__memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        },
    )
    assert Memory.now(one) == Memory.now(two)


def test_what_the_kernel_does_not_say_and_no_limit_are_none(tmp_path: Path) -> None:
    assert Memory.now(tmp_path) == Memory(most=None, limit=None, kills=0)
    unlimited = write(tmp_path, memory_DOT_max="max\n", **{"memory__memory.limit_in_bytes": "9223372036854771712"})
    assert Memory.now(unlimited).limit is None


def test_it_is_the_end_of_a_sentence() -> None:
    assert str(Memory(most=2_130_000_000, limit=2**31, kills=1)) == "used 1.98 GiB at most, of 2 GiB that it may"


@pytest.mark.parametrize(
    ("size", "text"), [(5, "5 B"), (1_000_000, "977 KiB"), (2**20, "1 MiB"), (999 * 2**40, "999 TiB")]
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert readable(size) == text


def test_a_containers_memory_limit_counts_in_both_versions(tmp_path: Path) -> None:
    second = {
        "memory_DOT_max": "1000\n",
        "memory_DOT_current": "700\n",
        "memory_DOT_stat": "anon 5\ninactive_file 200\n",
    }
    assert _left_of_limit(write(tmp_path / "v2", **second)) == [(1000, 500)]
    first = {
        "memory__memory.limit_in_bytes": "1000",
        "memory__memory.usage_in_bytes": "600",
        "memory__memory.stat": "cache 300\ntotal_inactive_file 100\n",
    }
    assert _left_of_limit(write(tmp_path / "v1", **first)) == [(1000, 500)]
    assert _left_of_limit(write(tmp_path / "max", **second | {"memory_DOT_max": "max\n"})) == []
    assert _left_of_limit(tmp_path / "none") == []


def test_this_machine_has_room() -> None:
    assert available_memory() > 2**20
