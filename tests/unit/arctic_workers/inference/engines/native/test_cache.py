"""Memory of keys and values."""

import gc
from pathlib import Path

import pytest
import torch

from arctic_workers.inference.engines.native.cache import KEYS, PagedAttend, PagedCache
from arctic_workers.inference.engines.native.step import Part


def resident() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return 1024 * int(line.split()[1])


def test_slots_take_memory_when_they_are_written() -> None:
    """So a cache as large as memory allows costs what is in use, and is near the threads that use it."""
    gc.collect()  # or what others left would be given back meanwhile
    before = resident()
    cache = PagedCache(range(1), blocks=1 << 14, block_size=16, heads=2, head_dim=64, dtype=torch.bfloat16)
    size = 2 * 2 * (1 << 18) * 64 * 2
    assert resident() - before < size // 4
    slots = torch.arange(1 << 18)
    ones = torch.ones(1, 2, 64)
    cache.write(0, slots[:16], ones.expand(16, 2, 64), ones.expand(16, 2, 64))
    keys, values = cache.read(0, torch.tensor([[0, 5]]))
    assert keys[..., :16, :].all()
    assert values[..., :16, :].all()
    assert not keys[..., 16:, :].any()
    assert resident() - before < size // 4
    cache.write(0, slots, ones.expand(1 << 18, 2, 64), ones.expand(1 << 18, 2, 64))
    assert resident() - before > size * 3 // 4


def test_a_long_sequence_costs_short_ones_in_its_step_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a step takes many times the memory of all keys and values that it reads."""
    positions = [6000, *range(63)]
    cache = PagedCache(range(1), blocks=500, block_size=16, heads=2, head_dim=16, dtype=torch.float32)
    copied, read = 0, PagedCache.read

    def counted(cache: PagedCache, layer: int, tables_BP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal copied
        copied += tables_BP.numel() * cache.block_size
        return read(cache, layer, tables_BP)

    monkeypatch.setattr(PagedCache, "read", counted)
    parts = [
        Part(position, (0,), (*range(376),) if position == 6000 else (376 + index, *range(5)), None)
        for index, position in enumerate(positions)
    ]
    rows = len(parts)
    PagedAttend(cache, parts)(0, torch.ones(1, rows, 6, 16), torch.ones(1, rows, 2, 16), torch.ones(1, rows, 2, 16))
    assert copied <= 2 * sum(positions) + rows * KEYS
