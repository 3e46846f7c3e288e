"""Products of rows with matrices, tile by tile. The package's `products.py` tells why they are as they are."""

import triton
import triton.language as tl

# Powers of two: a factor that loses nothing.
SHRINK = tl.constexpr(2.0**-4)
STRETCH = tl.constexpr(2.0**11)


@triton.jit
def add_product(w, x, leading, rest):
    """Add w [N, K] times x [R, K], transposed, to two sums: of x's leading bits and of those that are left."""
    if w.dtype == tl.float8e4nv:
        small = x * SHRINK
        high = small.to(tl.float16)
        low = ((small - high.to(tl.float32)) * STRETCH).to(tl.float16)
        wide = w.to(tl.float16)
        leading = tl.dot(wide, tl.trans(high), leading)
        rest = tl.dot(wide, tl.trans(low), rest)
    elif w.dtype == tl.bfloat16:
        high = (x.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)
        wide = w.to(tl.float32)
        leading = tl.dot(wide, tl.trans(high), leading, input_precision="tf32")
        rest = tl.dot(wide, tl.trans(x - high), rest, input_precision="tf32")
    else:
        leading = tl.dot(w, tl.trans(x), leading, input_precision="ieee")
    return leading, rest


@triton.jit
def whole(leading, rest, E4M3: tl.constexpr):
    """Return the sum of both; of e4m3 weights it is as small as `SHRINK` says, which `scales` makes good."""
    if E4M3:
        return leading + rest * (1 / STRETCH)
    return leading + rest


@triton.jit
def scales(places):
    """Return what makes sums of products with e4m3 weights what they should be."""
    return tl.load(places)[:, None] * (1 / SHRINK)


@triton.jit
def read(rows, k, at, K, STEP: tl.constexpr, EVEN: tl.constexpr):
    """Return a step's columns of rows of weights; zeros beyond the step, whose rows may have others there."""
    if EVEN:
        return tl.load(rows[:, None] + (at + k)[None, :])
    return tl.load(rows[:, None] + (at + k)[None, :], mask=((k < STEP) & (at + k < K))[None, :], other=0.0)


@triton.jit
def add_step(w, x, places, leading, rest, E4M3: tl.constexpr, BLOCKS: tl.constexpr):
    """Add a step's product: as it is, or by the scales of its blocks; then all of it is in the first sum."""
    if BLOCKS:
        zeros = tl.zeros_like(leading)
        own, own_rest = add_product(w, x, zeros, zeros)
        return tl.fma(whole(own, own_rest, E4M3), tl.broadcast_to(scales(places), leading.shape), leading), rest
    return add_product(w, x, leading, rest)


@triton.jit
def section(
    x_rows, w_rows, v_rows, w_places, v_places, here, k, begin, end, K,
    E4M3: tl.constexpr, GATED: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    STEP: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Return the products [N, R] of columns `begin` to `end` with w and, where it is GATED, with v."""
    zeros = tl.zeros((BLOCK_N, TILE), tl.float32)
    a, a_rest, b, b_rest = zeros, zeros, zeros, zeros
    for at in tl.range(begin, end, STEP, num_stages=STAGES):
        inside = here[:, None]
        if not EVEN:
            inside = inside & (at + k < K)[None, :]
        x = tl.load(x_rows[:, None] + (at + k)[None, :], mask=inside, other=0.0)
        w = read(w_rows, k, at, K, STEP, EVEN)
        a, a_rest = add_step(w, x, w_places + at // WIDTH, a, a_rest, E4M3, BLOCKS)
        if GATED:
            v = read(v_rows, k, at, K, STEP, EVEN)
            b, b_rest = add_step(v, x, v_places + at // WIDTH, b, b_rest, E4M3, BLOCKS)
    if not BLOCKS:
        a, b = whole(a, a_rest, E4M3), whole(b, b_rest, E4M3)
    return a, b


@triton.jit
def weights_of(
    w_ENK, w_scale, matrix, n, N, K,
    E4M3: tl.constexpr, BLOCKS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return where the rows of outputs n begin, and their scales, if there are any."""
    rows = w_ENK + (matrix * N + n) * K
    places = rows
    if BLOCKS:
        places = w_scale + (matrix * tl.cdiv(N, HEIGHT) + n // HEIGHT) * tl.cdiv(K, WIDTH)
    elif E4M3:
        places = w_scale + matrix * N + n
    return rows, places


@triton.jit
def is_last(a, b, parts, arrivals, out, inside, SIZE, GATED: tl.constexpr, SECTIONS: tl.constexpr):
    """Write a section's products to `parts`; say whether all others have been written."""
    own = parts + tl.program_id(2).to(tl.int64) * SIZE
    tl.store(own + out, a, mask=inside)
    if GATED:
        tl.store(own + SECTIONS * SIZE + out, b, mask=inside)
    tl.debug_barrier()  # all threads have written before one says so
    arrived = arrivals + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == SECTIONS - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def sum_of_sections(parts, inside, SIZE, SECTIONS: tl.constexpr):
    """Add in order what programs have written, past the first cache, which knows its own multiprocessor's alone."""
    total = tl.zeros(inside.shape, tl.float32)
    # As many on their way as there are registers for.
    for other in tl.range(SECTIONS, loop_unroll_factor=128 // inside.shape[1]):
        total += tl.load(parts + other * SIZE, mask=inside, cache_modifier=".cg")
    return total


@triton.jit
def finished(a, b, w_places, v_places, E4M3: tl.constexpr, GATED: tl.constexpr, BLOCKS: tl.constexpr):
    """Return what the sums of all columns come to."""
    if E4M3 and not BLOCKS:
        a *= scales(w_places)
        if GATED:
            b *= scales(v_places)
    if GATED:
        a = a / (1 + tl.exp(-a)) * b
    return a


# Neither changes what is worth compiling for, and both change from step to step.
@triton.jit(do_not_specialize=["R"], do_not_specialize_on_alignment=["table_M3"])
def product(
    x_SK, w_ENK, v_ENK, w_scale, v_scale, y_RN, table_M3, rows_R, parts, arrivals, N, K, LENGTH, R,
    E4M3: tl.constexpr, GATED: tl.constexpr, BLOCKS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    STEP: tl.constexpr, EVEN: tl.constexpr, SECTIONS: tl.constexpr, SPREAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N outputs of a tile's slots, or where it is SPREAD a section of their sums, and the last all."""
    tile = tl.program_id(0)
    matrix = tl.load(table_M3 + 3 * tile).to(tl.int64)
    first = tl.load(table_M3 + 3 * tile + 1)
    count = tl.load(table_M3 + 3 * tile + 2)
    if count == 0:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot = first + tl.arange(0, TILE)
    here = slot < first + count
    row = slot
    if rows_R is not None:
        row = tl.load(rows_R + slot, mask=here, other=0)
    x_rows = x_SK + row.to(tl.int64) * K
    # Outputs beyond the last read its weights again: loads need no mask.
    some = tl.minimum(n, N - 1)
    w_rows, w_places = weights_of(w_ENK, w_scale, matrix, some, N, K, E4M3, BLOCKS, HEIGHT, WIDTH)
    v_rows, v_places = w_rows, w_places
    if GATED:
        v_rows, v_places = weights_of(v_ENK, v_scale, matrix, some, N, K, E4M3, BLOCKS, HEIGHT, WIDTH)
    k = tl.arange(0, BLOCK_K)
    a, b = tl.zeros((BLOCK_N, TILE), tl.float32), tl.zeros((BLOCK_N, TILE), tl.float32)
    for other in range(1 if SPREAD else SECTIONS):
        begin = (tl.program_id(2) + other) * LENGTH
        more, more_b = section(
            x_rows, w_rows, v_rows, w_places, v_places, here, k, begin, tl.minimum(begin + LENGTH, K), K,
            E4M3, GATED, BLOCKS, WIDTH, STEP, EVEN, BLOCK_N, TILE, STAGES,
        )  # fmt: skip
        a += more
        b += more_b
    out = slot.to(tl.int64)[None, :] * N + n[:, None]
    inside = (n < N)[:, None] & here[None, :]
    if SPREAD:
        SIZE = R * N
        if not is_last(a, b, parts, arrivals, out, inside, SIZE, GATED, SECTIONS):
            return
        a = sum_of_sections(parts + out, inside, SIZE, SECTIONS)
        if GATED:
            b = sum_of_sections(parts + SECTIONS * SIZE + out, inside, SIZE, SECTIONS)
    tl.store(y_RN + out, finished(a, b, w_places, v_places, E4M3, GATED, BLOCKS), mask=inside)
