"""What a card reaches of itself: the rates that all else is measured against."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arctic_model import fp8
from benchmarks.on_gpu.measuring import seconds

BYTES = 8 << 30
"""Of each tensor that is copied or read: many times what a card's caches hold."""
SHAPES = ((8192, 8192, 8192), (16384, 8192, 8192), (16384, 7168, 4864), (16384, 4864, 7168))
"""Rows, inputs and outputs of the products of which the best counts; the last two are those of the 480B's experts."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second, and FLOPs a second."""

    copy: float
    """Read and written."""
    read: float
    bf16: float
    fp8: float | None
    """None where there are no units for it."""


def measured(device: torch.device, size: int = BYTES, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> Ceilings:
    """Measure a card."""
    return Ceilings(
        copy=2 * size / seconds(_copying(size, device), device),
        read=max(size / seconds(call, device) for call in _readings(size, device)),
        bf16=_best(_bf16, device, shapes),
        fp8=_best(_fp8, device, shapes) if _has_fp8(device) else None,
    )


def _numbers(size: int, device: torch.device) -> Tensor:
    return torch.empty(size // 4, device=device).normal_()


def _copying(size: int, device: torch.device) -> Callable[[], Tensor]:
    source = _numbers(size, device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _readings(size: int, device: torch.device) -> Iterator[Callable[[], Tensor]]:
    """Ways to read all of a tensor, and to write next to nothing: no one of them is the fastest on all cards."""
    source = _numbers(size, device)
    rows = source.view(-1, 4096)
    yield source.sum
    yield lambda: rows.amax(1)
    yield lambda: rows.view(torch.int32).amax(1)


def _has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _best(
    product: Callable[[int, int, int, torch.device], Callable[[], Tensor]],
    device: torch.device,
    shapes: Sequence[tuple[int, int, int]],
) -> float:
    return max(2 * m * k * n / seconds(product(m, k, n, device), device) for m, k, n in shapes)


def _bf16(m: int, k: int, n: int, device: torch.device) -> Callable[[], Tensor]:
    left, right = (torch.randn(rows, k, device=device, dtype=torch.bfloat16) for rows in (m, n))
    out = left.new_empty(m, n)
    return lambda: torch.mm(left, right.t(), out=out)


def _fp8(m: int, k: int, n: int, device: torch.device) -> Callable[[], Tensor]:
    left, right = (fp8.quantize(torch.randn(rows, k, device=device))[0] for rows in (m, n))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
