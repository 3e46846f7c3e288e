"""Attention over paged keys and values: what each tile of keys gives to some queries, and adding that up.

A tile's part is what softmax and weighted sum come to over its keys alone (Dao et al. 2022, arXiv 2205.14135; keys
shared out as in Flash-Decoding): the greatest score, the sum of the weights in relation to it, and the weighted sum of
values. Parts are added up in the order of keys by one function, whether in one program or by `merge_tiles`, and the
form that is compiled is the same for any step: so are the bits.

Names are those of `cuda.attention`; R are rows of a dot, the heads of some queries that share keys, and C keys.
"""

import triton
import triton.language as tl

from arctic_workers.inference.engines.native.cuda.kernels.storing import slots_of

_TOP = tl.constexpr(14)
"""Power of two that is near the top of fp16, with room for a factor of two."""


@triton.jit
def _first_seen(position, WINDOW: tl.constexpr, SINKS: tl.constexpr):
    """The first position that a query sees after the sinks, from where on it meets these apart; 0 while it sees all."""
    first = position - WINDOW + 1
    if WINDOW == 0:
        first = position * 0
    return tl.where(first > SINKS, first, 0)


@triton.jit
def _load_queries(q_ptr, at, mask, SCALED: tl.constexpr):
    """Queries [R, H], and the factor [R, 1] that has been taken out: where fp16 is to hold their pieces, a power of two
    by which the greatest of a row is near the top of that.
    """
    q = tl.where(mask, tl.load(q_ptr + at, mask=mask), 0.0)  # after the load: see `_part`
    if SCALED:
        exponent = tl.max(tl.abs(q).to(tl.int32, bitcast=True), 1) >> 23
        exponent = tl.maximum(exponent, 64)[:, None]
        up = ((254 - exponent + _TOP) << 23).to(tl.float32, bitcast=True)
        q *= up
        factor = ((exponent - _TOP) << 23).to(tl.float32, bitcast=True)
    else:
        factor = tl.full([1, 1], 1.0, tl.float32)
    return q, factor


@triton.jit
def _product(x, stored):
    """Multiply fp32 with what the cache holds, in pieces whose products are exact and whose sums are fp32.

    These are two of fp16 for e4m3, which fp16 holds, or three of bf16: 22 and 24 bits of each number.
    """
    if stored.dtype == tl.float16:
        big = x.to(tl.float16)
        small = (x - big.to(tl.float32)).to(tl.float16)
        y = tl.dot(small, stored, tl.dot(big, stored))
    elif stored.dtype == tl.bfloat16:
        big = x.to(tl.bfloat16)
        rest = x - big.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        small = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        y = tl.dot(small, stored, tl.dot(middle, stored, tl.dot(big, stored)))
    else:
        y = tl.dot(x, stored, input_precision="tf32x3")
    return y


@triton.jit
def _merge(top, total, sums, new_top, new_total, new_sums):
    """Add a part to those before it. Fused by name: what the compiler chose might differ from place to place."""
    most = tl.maximum(top, new_top)
    base = tl.where(most == float("-inf"), 0.0, most)
    old = tl.exp2(top - base)
    new = tl.exp2(new_top - base)
    total = tl.fma(new_total, new, total * old)
    sums = tl.fma(new_sums, tl.broadcast_to(new[:, None], sums.shape), sums * old[:, None])
    return most, total, sums


@triton.jit
def _shares(total, sums):
    """The weighted mean; zeros for who has seen nothing."""
    total = tl.where(total == 0.0, 1.0, total)
    return tl.div_rn(sums, tl.broadcast_to(total[:, None], sums.shape))


@triton.jit
def _part(
    q,
    factor,
    visible,
    seen,
    at,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """What keys at some slots [C] give to those rows to which they are `visible` [R, C]; any row sees those `seen` [C].

    What nobody sees is not read: it may be another sequence's, or no number.
    """
    operand: tl.constexpr = keys_ptr.dtype.element_ty if key_scales_ptr is None else tl.float16
    h = tl.arange(0, PADDED)
    vectors = at[:, None] * SIZE + h[None, :]
    there = seen[:, None] & (h < SIZE)[None, :]
    k = tl.load(keys_ptr + vectors, mask=there, other=0.0)
    # The mask comes after the conversion, which then is made before the way through shared memory, not behind it.
    v = tl.load(values_ptr + vectors, mask=there)
    v = tl.where(there, v.to(operand), 0.0)
    scores = _product(q, tl.trans(k).to(operand)) * factor
    if key_scales_ptr is not None:
        scores *= tl.load(key_scales_ptr + at, mask=seen, other=0.0)[None, :]
    scores = tl.where(visible, scores, float("-inf"))
    if value_scales_ptr is None:
        top = tl.max(scores, 1)
    else:
        # Weights are in relation to the greatest with its value's scale: then that one is near 1, and fits fp16.
        scale = tl.load(value_scales_ptr + at, mask=seen, other=1.0)
        exponent = tl.maximum((scale.to(tl.int32, bitcast=True) >> 23) - 127, -100)
        top = tl.max(scores + exponent.to(tl.float32)[None, :], 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(scores - base[:, None])
    total = tl.sum(weights, 1)
    if value_scales_ptr is None:
        sums = _product(weights, v)
    else:
        up: tl.constexpr = 2.0**_TOP
        sums = _product(weights * scale[None, :] * up, v) * (1 / up)
    return top, total, sums


@triton.jit(do_not_specialize=["blocks", "splits"])
def attend_tiles(
    q_ptr,
    sink_q_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    tiles_ptr,
    tables_ptr,
    dropped_ptr,
    out_ptr,
    tops_ptr,
    totals_ptr,
    sums_ptr,
    slots,
    blocks,
    splits,
    scale,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
):
    """A program is some queries of one sequence and one of their key-value heads: `SHARED` heads each, in `ROWS` rows.

    With `splits` 0 it adds up what all tiles of keys give, those of the sinks first, and writes `out`. Otherwise the
    programs along the last dimension write one tile's part each, at its place among as many as a query can see, and
    before those the first writes the sinks', where there are any.
    """
    # The last queries of a prompt see most, and are to start first.
    tiles_ptr += 4 * (tl.num_programs(0) - 1 - tl.program_id(0))
    first_row = tl.load(tiles_ptr)
    count = tl.load(tiles_ptr + 1)
    start = tl.load(tiles_ptr + 2)
    sequence = tl.load(tiles_ptr + 3)
    group = tl.program_id(1)
    has_sinks: tl.constexpr = 1 if SINKS > 0 else 0
    sink_tiles: tl.constexpr = (SINKS + TILE - 1) // TILE
    end = start + count
    low = _first_seen(start, WINDOW, SINKS)
    after_sinks = low // TILE
    # The sinks' tiles are counted as if they were those before.
    begin_tile = tl.where(_first_seen(end - 1, WINDOW, SINKS) > 0, after_sinks - sink_tiles, after_sinks)
    end_tile = (end + TILE - 1) // TILE
    place = tl.program_id(2)
    if splits > 0:
        if place < has_sinks:
            end_tile = after_sinks
        else:
            begin_tile = after_sinks + place - has_sinks
            end_tile = tl.minimum(end_tile, begin_tile + 1)
            place = has_sinks + begin_tile % splits
        if begin_tile >= end_tile:
            return

    table_ptr = tables_ptr + sequence.to(tl.int64) * blocks
    dropped = 0 if WINDOW == 0 else tl.load(dropped_ptr + sequence)
    heads = group.to(tl.int64) * slots
    sink_blocks: tl.constexpr = (SINKS + BLOCK - 1) // BLOCK
    scaled: tl.constexpr = key_scales_ptr is not None
    r = tl.arange(0, ROWS)
    h = tl.arange(0, PADDED)
    query = r // SHARED
    valid = query < count
    position = tl.where(valid, start + query, -1)
    begin = _first_seen(position, WINDOW, SINKS)
    row = (first_row + query).to(tl.int64) * (GROUPS * SHARED) + group * SHARED + r % SHARED
    vectors = row[:, None] * SIZE + h[None, :]
    there = valid[:, None] & (h < SIZE)[None, :]
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED], tl.float32)
    q, factor = _load_queries(q_ptr, vectors, there, scaled)
    for tile in tl.range(begin_tile, end_tile, num_stages=1):
        keys = tile * TILE + tl.arange(0, TILE)
        seen = (keys >= low) & (keys < end)
        visible = (keys[None, :] >= begin[:, None]) & (keys[None, :] <= position[:, None])
        if SINKS > 0:
            of_sinks = tile < after_sinks
            keys -= tl.where(of_sinks, (after_sinks - sink_tiles) * TILE, 0)
            seen = tl.where(of_sinks, keys < SINKS, seen)
            visible = tl.where(of_sinks, (keys < SINKS)[None, :] & (begin > 0)[:, None], visible)
            q, factor = _load_queries(tl.where(of_sinks, sink_q_ptr, q_ptr), vectors, there, scaled)
        at = heads + slots_of(keys, seen, table_ptr, dropped, BLOCK, sink_blocks)
        new_top, new_total, new_sums = _part(
            q,
            factor * scale,
            visible,
            seen,
            at,
            keys_ptr,
            values_ptr,
            key_scales_ptr,
            value_scales_ptr,
            SIZE,
            PADDED,
        )
        top, total, sums = _merge(top, total, sums, new_top, new_total, new_sums)
    if splits > 0:
        to = row * (splits + has_sinks) + place
        tl.store(tops_ptr + to, top, mask=valid)
        tl.store(totals_ptr + to, total, mask=valid)
        tl.store(sums_ptr + to[:, None] * SIZE + h[None, :], sums, mask=there)
    else:
        tl.store(out_ptr + vectors, _shares(total, sums), mask=there)


@triton.jit
def _merge_at(top, total, sums, at, tops_ptr, totals_ptr, sums_ptr, h, SIZE: tl.constexpr):
    """Add the part at a place of the workspace."""
    one = tl.arange(0, 1)
    new_top = tl.load(tops_ptr + at + one)
    new_total = tl.load(totals_ptr + at + one)
    new_sums = tl.load(sums_ptr + at * SIZE + h[None, :], mask=(h < SIZE)[None, :], other=0.0)
    return _merge(top, total, sums, new_top, new_total, new_sums)


@triton.jit(do_not_specialize=["splits"])
def merge_tiles(
    tops_ptr,
    totals_ptr,
    sums_ptr,
    positions_ptr,
    out_ptr,
    splits,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A program is one head of one token: adds up what `attend_tiles` wrote for the tiles that it sees."""
    token = tl.program_id(0)
    position = tl.load(positions_ptr + token)
    h = tl.arange(0, PADDED)
    row = token.to(tl.int64) * HEADS + tl.program_id(1)
    has_sinks: tl.constexpr = 1 if SINKS > 0 else 0
    places = row * (splits + has_sinks)
    top = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([1, PADDED], tl.float32)
    begin = _first_seen(position, WINDOW, SINKS)
    if has_sinks * begin > 0:
        top, total, sums = _merge_at(top, total, sums, places, tops_ptr, totals_ptr, sums_ptr, h, SIZE)
    for tile in tl.range(begin // TILE, (position + TILE) // TILE, num_stages=STAGES):
        at = places + has_sinks + tile % splits
        top, total, sums = _merge_at(top, total, sums, at, tops_ptr, totals_ptr, sums_ptr, h, SIZE)
    tl.store(out_ptr + row * SIZE + h[None, :], _shares(total, sums), mask=(h < SIZE)[None, :])
