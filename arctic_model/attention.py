"""Attention: the projections, and the pure functions and callables that combine queries, keys and values.

Whoever keeps keys and values elsewhere (an inference engine's cache, sequence parallelism) passes an `Attend` of its
own. Shapes are named by the legend of `arctic_model.layers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.config import ArcticConfig
from arctic_model.devices import on_device
from arctic_model.layers import Rotation, rotate_both


class Attend(Protocol):
    """Combines the queries of one layer with keys and values, of this call or kept from earlier ones."""

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        """Return one output a query head [B, T, N, H]; queries and keys are rotated. `layer` is the global index."""
        ...


class SplitAttend(ABC):
    """An `Attend` in three steps, of which the first and the last communicate; the one between may be done again."""

    @abstractmethod
    def begin(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values that this rank attends with."""

    @abstractmethod
    def attend(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        """Return one output for each of these queries."""

    @abstractmethod
    def end(self, layer: int, out_BTNH: Tensor) -> Tensor:
        """Return the outputs of the queries that `begin` was given."""

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        """See `Attend`."""
        return self.end(layer, self.attend(layer, *self.begin(layer, q_BTNH, k_BTGH, v_BTGH)))


class CausalAttend:
    """Attention among the tokens of one call, each sequence starting at its first token; keeps nothing."""

    def __init__(self, window: int | None = None, sinks: int = 0) -> None:
        self._window = window
        self._sinks = sinks

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:  # noqa: ARG002
        """See `Attend`."""
        length = q_BTNH.shape[1]
        if self._window is None or self._window >= length:
            return grouped_attention(q_BTNH, k_BTGH, v_BTGH)
        positions_T = torch.arange(length, device=q_BTNH.device)
        visible_TT = attention_mask(positions_T, positions_T, self._window, self._sinks)
        return grouped_attention(q_BTNH, k_BTGH, v_BTGH, visible_TT)


class DocumentAttend:
    """Attention within each of the documents that share a sequence; keeps nothing.

    Documents are cut apart and attended to one by one, so that no mask is made for them and nothing is computed between
    them; short ones that follow each other are taken together, under a mask of at most `TOGETHER` squared. On a GPU
    one call of a kernel that is told where they begin takes all of them. Nothing waits for the device.

    Args:
        starts: where documents begin, by sequence: the first at 0, in order.
        length: tokens of each sequence.
        window, sinks: as of `CausalAttend`, counted within each document.
    """

    def __init__(self, starts: Sequence[Sequence[int]], length: int, window: int | None = None, sinks: int = 0) -> None:
        self._causal = CausalAttend(window, sinks)
        self._window, self._sinks = window, sinks
        self._sizes = _document_lengths(starts, length)
        self._parts = list(_together(self._sizes, self._fits_whole))
        self._alone = all(len(row) == 1 for row in starts)
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self._begins: Tensor | None = None

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        """See `Attend`."""
        whole = self._alone and all(map(self._fits_whole, self._sizes))
        if not whole and not self._sinks and flash_takes(q_BTNH):
            return self._flash(q_BTNH, k_BTGH, v_BTGH)
        if self._alone:
            return self._causal(layer, q_BTNH, k_BTGH, v_BTGH)
        sizes = [sum(part) for part in self._parts]
        rows = (x.flatten(0, 1).unsqueeze(0) for x in (q_BTNH, k_BTGH, v_BTGH))
        cut = zip(*(torch.split(row, sizes, 1) for row in rows), strict=True)
        pieces = [self._attend(layer, part, *tensors) for part, tensors in zip(self._parts, cut, strict=True)]
        return torch.cat(pieces, 1).view_as(q_BTNH)

    def _flash(self, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        if self._begins is None:
            self._begins = on_device(torch.tensor([0, *accumulate(self._sizes)], dtype=torch.int32), q_BTNH.device)
        q_SNH, k_SGH, v_SGH = (x.flatten(0, 1) for x in (q_BTNH, k_BTGH, v_BTGH))
        return flash_attention(q_SNH, k_SGH, v_SGH, self._begins, max(self._sizes), self._window).view_as(q_BTNH)

    def _fits_whole(self, size: int) -> bool:
        return self._window is None or size <= self._window

    def _attend(self, layer: int, part: tuple[int, ...], q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        if len(part) == 1:
            return self._causal(layer, q_BTNH, k_BTGH, v_BTGH)
        if part not in self._masks:
            documents_T = torch.arange(len(part)).repeat_interleave(torch.tensor(part), output_size=sum(part))
            visible_TT = (documents_T[:, None] == documents_T[None, :]).tril()
            self._masks[part] = visible_TT.to(q_BTNH.device, non_blocking=True)
        return grouped_attention(q_BTNH, k_BTGH, v_BTGH, self._masks[part])


TOGETHER = 128
"""Tokens up to which documents are attended to in one call: fewer are not worth one of their own."""


def _document_lengths(starts: Sequence[Sequence[int]], length: int) -> list[int]:
    return [end - begin for row in starts for begin, end in pairwise([*row, length])]


def _together(lengths: Iterable[int], fits: Callable[[int], bool]) -> Iterator[tuple[int, ...]]:
    """Yield the lengths of documents in groups: those of one call."""
    group: tuple[int, ...] = ()
    for size in lengths:
        if group and (sum(group) + size > TOGETHER or not fits(size) or not fits(group[0])):
            yield group
            group = ()
        group += (size,)
    if group:
        yield group


def document_positions(starts: Sequence[Sequence[int]], length: int) -> Tensor:
    """Return the position of each token within its document, from 0: [B, T], on the CPU.

    Args:
        starts: where documents begin, by sequence: the first at 0, in order.
        length: tokens of each sequence.
    """
    lengths, tokens = torch.tensor(_document_lengths(starts, length)), len(starts) * length
    begins = (lengths.cumsum(0) - lengths).repeat_interleave(lengths, output_size=tokens)
    return (torch.arange(tokens) - begins).view(-1, length)


def attention_mask(queries_Q: Tensor, keys_L: Tensor, window: int | None = None, sinks: int = 0) -> Tensor:
    """Which keys each query may see, by their positions: bool [Q, L].

    Never a later key; with a `window`, only the latest `window` keys (the query's own among them) and the first
    `sinks` positions (Xiao et al. 2023, arXiv 2309.17453).
    """
    distance_QL = queries_Q[:, None] - keys_L[None, :]
    visible_QL = distance_QL >= 0
    if window is None:
        return visible_QL
    return visible_QL & ((distance_QL < window) | (keys_L[None, :] < sinks))


def grouped_attention(q_BTNH: Tensor, k_BLGH: Tensor, v_BLGH: Tensor, visible: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention with N / G query heads a key-value head; returns [B, T, N, H].

    `visible` is a bool mask [T, L] or [B, 1, T, L]; without it, T equals L and attention is causal.
    """
    out_BNTH = functional.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BLGH.transpose(1, 2),
        v_BLGH.transpose(1, 2),
        attn_mask=visible,
        is_causal=visible is None,
        enable_gqa=True,
    )
    return out_BNTH.transpose(1, 2)


def flash_takes(q_BTNH: Tensor) -> bool:
    """Whether `flash_attention` takes such queries: on a GPU, of 16 bits and a head size that is a multiple of 8."""
    return q_BTNH.device.type == "cuda" and q_BTNH.dtype.itemsize == 2 and q_BTNH.shape[-1] % 8 == 0


def flash_attention(
    q_SNH: Tensor, k_SGH: Tensor, v_SGH: Tensor, begins: Tensor, longest: int, window: int | None = None
) -> Tensor:
    """Causal attention within documents that lie one after the other, by FlashAttention-2 (Dao 2023, arXiv 2307.08691).

    Torch's own operator below `varlen_attn`, whose signature differs between the versions of torch: the kernel shares
    heads of keys and values by itself.

    Args:
        q_SNH: queries of all documents; returned are as many outputs.
        k_SGH, v_SGH: keys and values; G divides N.
        begins: where each document begins, and the last one ends: int32, on the device.
        longest: tokens of the longest document.
        window: the latest keys that a query sees, its own among them; by default all.
    """
    out_SNH: Tensor = torch.ops.aten._flash_attention_forward(
        *(q_SNH, k_SGH, v_SGH, begins, begins, longest, longest),
        dropout_p=0.0,
        is_causal=True,
        return_debug_mask=False,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )[0]
    return out_SNH


class Attention(nn.Module):
    """Projections around an `Attend`, without biases."""

    def __init__(self, config: ArcticConfig, layer: int) -> None:
        super().__init__()
        hidden, grouped = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, grouped, bias=False)
        self.v_proj = nn.Linear(hidden, grouped, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x_BTD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Return [B, T, D]."""
        return self.leave(attend(self.layer, *self.enter(x_BTD, rotation)))

    def enter(self, x_BTD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, T, N, H], keys and values [B, T, G, H], as an `Attend` takes them."""
        q_BTNH, k_BTGH, v_BTGH = (
            proj(x_BTD).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return *rotate_both(q_BTNH, k_BTGH, *rotation), v_BTGH

    def leave(self, out_BTNH: Tensor) -> Tensor:
        """Return [B, T, D] of what an `Attend` has returned."""
        out: Tensor = self.o_proj(out_BTNH.flatten(-2))
        return out
