"""Memory of keys and values."""

from pathlib import Path

import torch

from arctic_workers.inference.engines.native.cache import PagedCache


def resident() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return 1024 * int(line.split()[1])


def test_slots_take_memory_when_they_are_written() -> None:
    """So a cache as large as memory allows costs what is in use, and is near the threads that use it."""
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
