"""Which row goes where: the choices of this rank's tokens in the order in which they are sent, chunk by chunk.

Chunks are parts of each rank's experts, so that every expert has all of its rows at once and sums don't depend on the
number of chunks, to the bit. Where a rank holds fewer experts than there are chunks, they are parts of the tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from arctic_model.moe import count_choices


@dataclass(frozen=True)
class Routes:
    """The order of the rows of this rank's tokens: by chunk, then by rank, then by expert, then by token.

    R are the rows: K choices of each of S tokens. C are the chunks, W the ranks, E the experts of a rank.
    """

    order_R: Tensor
    """For each row that is sent, which choice it is: token times K plus the number of the choice; dropped ones last."""
    counts_CWE: Tensor
    """Rows of each chunk for each rank's experts."""

    @classmethod
    def of(cls, experts_SK: Tensor, experts: int, ranks: int, chunks: int, kept_SK: Tensor | None = None) -> "Routes":
        """Sort the choices of `experts` experts over `ranks` ranks into `chunks` chunks, but for those not kept."""
        held = experts // ranks
        choices_R = experts_SK.flatten()
        if held >= chunks:
            chunk_of_expert = torch.arange(held, device=choices_R.device) * chunks // held
            keys_R = chunk_of_expert.repeat(ranks)[choices_R] * experts + choices_R
        else:
            tokens, chosen = experts_SK.shape
            chunk_of_token = torch.arange(tokens, device=choices_R.device) * chunks // tokens
            keys_R = chunk_of_token.repeat_interleave(chosen) * experts + choices_R
        nobody = chunks * experts
        if kept_SK is not None:
            keys_R = torch.where(kept_SK.flatten(), keys_R, nobody)
        counts_CWE = count_choices(keys_R, nobody + 1)[:nobody].view(chunks, ranks, held)
        return cls(_sorted(keys_R), counts_CWE)


def _sorted(keys_R: Tensor) -> Tensor:
    """Return the stable order of small numbers: a GPU sorts by digits, of which few are enough."""
    return (keys_R.to(torch.int16) if keys_R.device.type == "cuda" else keys_R).argsort(stable=True)


def experts_of_chunk(chunk: int, chunks: int, held: int) -> slice:
    """Return those experts of a rank, which holds so many, that have rows in a chunk."""
    if held < chunks:
        return slice(0, held)
    return slice(-(-chunk * held // chunks), -(-(chunk + 1) * held // chunks))


def order_by_expert(counts_WE: Tensor, rows: int) -> Tensor:
    """Return the order that brings so many rows, sorted by (sender, expert), into that by (expert, sender)."""
    experts_WE = torch.arange(counts_WE.shape[1], device=counts_WE.device).expand_as(counts_WE)
    return _sorted(experts_WE.flatten().repeat_interleave(counts_WE.flatten(), output_size=rows))


def inverse(order: Tensor) -> Tensor:
    """Return the order that undoes `order`."""
    back = torch.empty_like(order)
    back[order] = torch.arange(order.shape[0], device=order.device)
    return back
