"""The choice of experts, the order of choices by expert, and the sum of what experts return."""

import triton
import triton.language as tl


@triton.jit
def choose_block(
    logits_SE, weights_SK, experts_SK, at, S, E, K: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Choose the experts of tokens from `at`: the likeliest first, of equally likely ones the first."""
    s = at + tl.arange(0, BLOCK_S)
    e = tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    some = tl.minimum(s, S - 1)
    logits = tl.load(logits_SE + some[:, None] * E + e[None, :], mask=(e < E)[None, :], other=float("-inf"))
    most = tl.max(logits, axis=1)
    weights = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    experts = tl.zeros((BLOCK_S, BLOCK_K), tl.int32)
    for choice in tl.static_range(K):
        # An expert that is there, also where a logit is no number.
        expert = tl.minimum(tl.argmax(logits, axis=1), E - 1)
        weight = tl.exp(tl.max(logits, axis=1) - most)
        weights = tl.where((k == choice)[None, :], weight[:, None], weights)
        experts = tl.where((k == choice)[None, :], expert[:, None], experts)
        logits = tl.where(e[None, :] == expert[:, None], float("-inf"), logits)
    places = s[:, None] * K + k[None, :]
    inside = (s < S)[:, None] & (k < K)[None, :]
    tl.store(weights_SK + places, weights / tl.sum(weights, axis=1)[:, None], mask=inside)
    tl.store(experts_SK + places, experts, mask=inside)


@triton.jit(do_not_specialize=["S"])
def choose(
    logits_SE, weights_SK, experts_SK, S, E, K: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Choose the experts of some tokens."""
    choose_block(logits_SE, weights_SK, experts_SK, tl.program_id(0) * BLOCK_S, S, E, K, BLOCK_S, BLOCK_E, BLOCK_K)


# What changes from step to step has no code of its own: nobody is to wait for that to be compiled.
@triton.jit(do_not_specialize=["S", "M", "SIZE"], do_not_specialize_on_alignment=["places_SK"])
def sort(
    logits_SE, weights_SK, experts_SK, rows_R, places_SK, table_M3, S, E, M, SIZE, K: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, CHOOSE: tl.constexpr,
):  # fmt: skip
    """Give an expert's choices their slots and tiles; the program after the last expert empties the other tiles.

    With CHOOSE each program makes all choices for itself first: of few tokens that is sooner done than a kernel begun.
    """
    if CHOOSE:
        choose_block(logits_SE, weights_SK, experts_SK, 0, S, E, K, BLOCK_S, BLOCK_E, BLOCK_K)
        tl.debug_barrier()  # what is read below has been written by all threads
    own = tl.program_id(0)
    R = S * K
    e = tl.arange(0, BLOCK_E)
    counts = tl.zeros((BLOCK_E,), tl.int32)
    for at in range(0, R, BLOCK_R):
        r = at + tl.arange(0, BLOCK_R)
        counts += tl.histogram(tl.load(experts_SK + r, mask=r < R, other=0), BLOCK_E, mask=r < R)
    first = tl.sum(tl.where(e < own, counts, 0))
    count = tl.sum(tl.where(e == own, counts, 0))
    tile = tl.sum(tl.where(e < own, tl.cdiv(counts, SIZE), 0))

    slot = first
    for at in range(0, R, BLOCK_R):
        r = at + tl.arange(0, BLOCK_R)
        mine = tl.load(experts_SK + r, mask=r < R, other=-1) == own
        place = slot + tl.cumsum(mine.to(tl.int32)) - 1
        tl.store(rows_R + place, r // K, mask=mine)
        tl.store(places_SK + r, place, mask=mine)
        slot += tl.sum(mine.to(tl.int32))

    tiles = tl.cdiv(count, SIZE)
    if own == E:
        tiles = M - tile
    for at in range(0, tiles, BLOCK_R):
        t = at + tl.arange(0, BLOCK_R)
        entry = table_M3 + 3 * (tile + t)
        tl.store(entry, tl.minimum(own, E - 1), mask=t < tiles)
        tl.store(entry + 1, first + t * SIZE, mask=t < tiles)
        tl.store(entry + 2, tl.minimum(tl.maximum(count - t * SIZE, 0), SIZE), mask=t < tiles)


@triton.jit(do_not_specialize_on_alignment=["places_SK"])
def weighted_sum(y_RD, weights_SK, places_SK, out_SD, D, K: tl.constexpr, BLOCK_D: tl.constexpr):
    """Add up a part of what a token's experts returned."""
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for choice in tl.static_range(K):
        place = tl.load(places_SK + token * K + choice).to(tl.int64)
        y = tl.load(y_RD + place * D + d, mask=d < D, other=0.0)
        total += y * tl.load(weights_SK + token * K + choice)
    tl.store(out_SD + token.to(tl.int64) * D + d, total, mask=d < D)
