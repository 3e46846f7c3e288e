"""Which experts a token has, which rows run together for that, and the sum of what experts return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from arctic_model.launch import launch
from arctic_workers.inference.engines.native.cuda.kernels import routing as kernels
from arctic_workers.inference.engines.native.cuda.products import Tiles

TOKENS = 16
"""For which a program chooses; so many at most are chosen for and sorted by one kernel."""
CHOICES = 1024
"""That a program sorts at a time, where there are many."""
COLUMNS = 1024
"""That a program adds up."""


@dataclass(frozen=True, eq=False)
class Routes:
    """Where tokens go. The choices of S tokens, K each, are R = S K slots, sorted by expert, then by token."""

    weights_SK: Tensor
    """fp32; a token's sum to 1. Its likeliest expert is the first."""
    experts_SK: Tensor
    """int32: which experts they are of."""
    tiles: Tiles
    """Of the experts' first product, where a slot reads its token; `of_slots` are those of the second."""
    places_SK: Tensor
    """int32: the slot of each choice."""


def route(logits_SE: Tensor, chosen: int, size: int) -> Routes:
    """Choose each token's experts from fp32 logits and cut the slots of each into tiles of a size.

    The choice is `arctic_model.moe.Router`'s: softmax, the likeliest, renormalised over these. Logits are compared, not
    probabilities, which may be equal where logits aren't. Of equal ones the first expert is chosen.

    There are as many tiles as so many choices need at most: the others are empty.
    """
    logits_SE = logits_SE.contiguous()
    tokens, experts = logits_SE.shape
    choices = tokens * chosen
    tiles = min(choices, experts) + choices // size
    weights_SK = logits_SE.new_empty(tokens, chosen)
    experts_SK, places_SK = logits_SE.new_empty(2, tokens, chosen, dtype=torch.int32)
    rows_R = places_SK.new_empty(choices)
    table_M3 = places_SK.new_empty(tiles, 3)
    few = tokens <= TOKENS
    blocks = {
        "BLOCK_S": TOKENS,
        "BLOCK_E": triton.next_power_of_2(experts),
        "BLOCK_K": triton.next_power_of_2(chosen),
    }
    if not few:
        grid = (triton.cdiv(tokens, TOKENS),)
        launch(kernels.choose, grid, logits_SE, weights_SK, experts_SK, tokens, experts, K=chosen, **blocks)
    launch(
        kernels.sort,
        (experts + 1 if tokens else 0,),
        logits_SE,
        weights_SK,
        experts_SK,
        rows_R,
        places_SK,
        table_M3,
        tokens,
        experts,
        tiles,
        size,
        K=chosen,
        BLOCK_R=triton.next_power_of_2(TOKENS * chosen) if few else CHOICES,
        CHOOSE=few,
        **blocks,
    )
    return Routes(weights_SK, experts_SK, Tiles(table_M3, rows_R, size), places_SK)


def weighted_sum(y_RD: Tensor, routes: Routes) -> Tensor:
    """Return [S, D] in fp32: what a token's experts returned times their weights, added in the order of choice."""
    tokens, chosen = routes.weights_SK.shape
    size = y_RD.shape[1]
    out_SD = y_RD.new_empty(tokens, size)
    grid = (tokens, triton.cdiv(size, COLUMNS))
    y_RD = y_RD.contiguous()
    launch(
        kernels.weighted_sum, grid, y_RD, routes.weights_SK, routes.places_SK, out_SD, size, K=chosen, BLOCK_D=COLUMNS
    )
    return out_SD
