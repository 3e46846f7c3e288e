"""Queries, keys and values of new tokens: turning them by their positions, and rounding and placing them in the cache.

Numbers are rounded here bit by bit: Triton's interpreter does not round as GPUs do, and not all GPUs know e4m3. Names
are those of `cuda.attention`; `h` are the elements of a head, `HALF` of which are half of it.
"""

import triton
import triton.language as tl


@triton.jit
def slots_of(positions, mask, table_ptr, dropped, BLOCK: tl.constexpr, SINK_BLOCKS: tl.constexpr):
    """Where a sequence's tokens are in the cache, int64; of no use where `mask` says that nobody asks."""
    index = positions // BLOCK
    place = tl.where(index < SINK_BLOCKS, index, index - dropped)
    return tl.load(table_ptr + place, mask=mask, other=0).to(tl.int64) * BLOCK + positions % BLOCK


@triton.jit
def _turned(x_ptr, at, mask, h, cos, sin, HALF: tl.constexpr):
    """Heads that begin at `at`, [..., 1], turned: as `arctic_model.layers.rotate` does."""
    x = tl.load(x_ptr + at + h, mask=mask, other=0.0)
    partner = tl.load(x_ptr + at + tl.where(h < HALF, h + HALF, h - HALF), mask=mask, other=0.0)
    return x * cos + tl.where(h < HALF, -partner, partner) * sin


@triton.jit
def _to_bf16(x):
    """Bits of bf16 in int16: to nearest, ties to even, and a NaN stays one."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x != x, 0x7FC0, rounded).to(tl.int16)


@triton.jit
def to_e4m3(x):
    """Bits of e4m3 in uint8: to nearest, ties to even, what is beyond 448 as 448, and a NaN stays one."""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 codes count steps of 2^-9, which is what the last bit of 2^14 and a little counts.
    steps = (tl.abs(x) + 16384.0).to(tl.uint32, bitcast=True) & 0xF
    code = tl.where(magnitude < (121 << 23), steps, tl.minimum(normal, 0x7E))
    return tl.where(x != x, 0x7F, ((bits >> 31) << 7) | code).to(tl.uint8)


@triton.jit
def _keep(x, numbers_ptr, scales_ptr, at, h, SIZE: tl.constexpr):
    """Write a vector, zeros behind its end, to a slot of all heads' slots; in e4m3 as `arctic_model.fp8.quantize`."""
    if scales_ptr is not None:
        # As integers magnitudes have the same order, and a NaN is the greatest.
        most = tl.max(tl.abs(x).to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
        scale = tl.div_rn(most, 448.0)
        scale = tl.where(scale > 0, scale, 1.0)
        tl.store(scales_ptr + at, scale)
        x = to_e4m3(tl.div_rn(x, scale))
    elif numbers_ptr.dtype.element_ty == tl.int16:
        x = _to_bf16(x)
    tl.store(numbers_ptr + at * SIZE + h, x, mask=h < SIZE)


@triton.jit(do_not_specialize=["blocks"])
def store_heads(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    sink_cos_ptr,
    sink_sin_ptr,
    positions_ptr,
    sequences_ptr,
    tables_ptr,
    dropped_ptr,
    q_ptr,
    sink_q_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    slots,
    blocks,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINK_BLOCKS: tl.constexpr,
):
    """A program is one token and key-value head, with the `SHARED` query heads that share it.

    The cache has e4m3 as uint8 and bf16 as int16. Heads of `SIZE` are padded to `PADDED`, the query heads to `ROWS`.
    """
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    half: tl.constexpr = SIZE // 2
    h = tl.arange(0, PADDED)
    r = tl.arange(0, ROWS)
    inside = h < SIZE
    cos = tl.load(cos_ptr + token * SIZE + h, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + token * SIZE + h, mask=inside, other=0.0)
    qkv_ptr += token * (GROUPS * (SHARED + 2) * SIZE)

    there = (r < SHARED)[:, None] & inside[None, :]
    heads = (group * SHARED + r)[:, None] * SIZE
    to = token * (GROUPS * SHARED * SIZE) + heads + h[None, :]
    tl.store(q_ptr + to, _turned(qkv_ptr, heads, there, h[None, :], cos[None, :], sin[None, :], half), mask=there)
    if sink_q_ptr is not None:
        sink_cos = tl.load(sink_cos_ptr + h, mask=inside, other=0.0)[None, :]
        sink_sin = tl.load(sink_sin_ptr + h, mask=inside, other=0.0)[None, :]
        tl.store(sink_q_ptr + to, _turned(qkv_ptr, heads, there, h[None, :], sink_cos, sink_sin, half), mask=there)

    position = tl.load(positions_ptr + token)
    if position < 0:
        return
    sequence = tl.load(sequences_ptr + token).to(tl.int64)
    dropped = tl.load(dropped_ptr + sequence)
    at = group.to(tl.int64) * slots + slots_of(
        position, True, tables_ptr + sequence * blocks, dropped, BLOCK, SINK_BLOCKS
    )
    key = (GROUPS * SHARED + group) * SIZE
    _keep(_turned(qkv_ptr, key, inside, h, cos, sin, half), keys_ptr, key_scales_ptr, at, h, SIZE)
    value = tl.load(qkv_ptr + key + GROUPS * SIZE + h, mask=inside, other=0.0)
    _keep(value, values_ptr, value_scales_ptr, at, h, SIZE)
