"""Sequence parallelism: consecutive ranks share out the tokens of each sequence, and its heads around attention.

DeepSpeed Ulysses (Jacobs et al. 2023, arXiv 2309.14509): before attention each rank gives the others their heads of its
tokens and gets its own heads of theirs; it attends over whole sequences, and all goes back. Both ways take one exchange
a layer, with the queries, keys and values of a head together. Shapes are named by the legend of `arctic_model.layers`;
W are the ranks, t the tokens of a rank and n its heads of all kinds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from arctic_model.attention import Attend, SplitAttend
from arctic_workers.training.experts.exposure import Flights


@dataclass(frozen=True)
class SequenceShare:
    """Which part of each sequence a rank has."""

    index: int
    ranks: int
    group: Any
    """Those that share a sequence, in the order of its parts."""
    flights: Flights
    """Where exchanges of heads are noted."""

    def part(self, x_BT: Tensor) -> Tensor:
        """Return this rank's tokens of each sequence; the ranks divide its length."""
        return x_BT.tensor_split(self.ranks, 1)[self.index]

    def exchange(self, leaving_W: Tensor, layer: int, *, backward: bool) -> Tensor:
        """Give each of the ranks its part of the first dimension; returns what they gave. Collective."""
        leaving_W = leaving_W.contiguous()
        arriving_W = torch.empty_like(leaving_W)
        work = dist.all_to_all_single(arriving_W, leaving_W, group=self.group, async_op=True)
        flight = self.flights.launched(layer, "heads", backward=backward)
        if leaving_W.device.type == "cpu":  # elsewhere it would be the launch that is noted
            self.flights.watch(flight, work)
        with self.flights.waiting(flight):
            work.wait()
        return arriving_W

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all that share a sequence; gives no gradients. Collective."""
        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.ranks


def share_sequences(rank: int, ranks: int, flights: Flights) -> SequenceShare | None:
    """Return this rank's part of the sequences that each `ranks` consecutive ranks share, None if one. Collective."""
    if ranks == 1:
        return None
    group, _ = dist.new_subgroups(ranks)  # type: ignore[no-untyped-call]
    return SequenceShare(rank % ranks, ranks, group, flights)


class HeadAttend(SplitAttend):
    """Attention of a rank's own heads over whole sequences.

    Args:
        whole: attends over whole sequences, whatever the number of heads.
        share: what this rank has of them.
    """

    def __init__(self, whole: Attend, share: SequenceShare) -> None:
        self._whole = whole
        self._share = share

    def begin(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `SplitAttend`."""
        parts = [x.view(*x.shape[:2], self._share.ranks, -1, x.shape[3]) for x in (q_BTNH, k_BTGH, v_BTGH)]
        sizes = [part.shape[3] for part in parts]
        together_BtWnH = torch.cat(parts, 3)
        batch, tokens, ranks, *rest = together_BtWnH.shape
        received_WBtnH = _swap(together_BtWnH.permute(2, 0, 1, 3, 4), self._share, layer)
        q, k, v = torch.split(received_WBtnH.transpose(0, 1).reshape(batch, ranks * tokens, *rest), sizes, 2)
        return q, k, v

    def attend(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        """See `SplitAttend`."""
        return self._whole(layer, q_BTNH, k_BTGH, v_BTGH)

    def end(self, layer: int, out_BTNH: Tensor) -> Tensor:
        """See `SplitAttend`."""
        batch, _, *rest = out_BTNH.shape
        leaving_WBtnH = out_BTNH.reshape(batch, self._share.ranks, -1, *rest).transpose(0, 1)
        return _swap(leaving_WBtnH, self._share, layer).permute(1, 2, 0, 3, 4).flatten(2, 3)


class _Swap(torch.autograd.Function):
    """Exchanges parts of the first dimension; the backward pass does the same with the gradients."""

    @staticmethod
    def forward(ctx: Any, leaving_W: Tensor, share: SequenceShare, layer: int) -> Tensor:
        ctx.share, ctx.layer = share, layer
        return share.exchange(leaving_W, layer, backward=False)

    @staticmethod
    def backward(ctx: Any, gradient_W: Tensor) -> tuple[Tensor, None, None]:
        return ctx.share.exchange(gradient_W, ctx.layer, backward=True), None, None


_swap = cast("Callable[[Tensor, SequenceShare, int], Tensor]", _Swap.apply)
