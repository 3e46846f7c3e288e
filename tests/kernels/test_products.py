"""Products of a GPU's kernels under Triton's interpreter, against the same in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from triton.runtime.interpreter import InterpreterBuilder
from triton.runtime.interpreter import TensorHandle as Handle

from arctic_model.fp8 import DTYPE as FP8
from arctic_model.fp8 import Block, dequantize, quantize, quantize_blocks
from arctic_model.launch import launch
from arctic_workers.inference.engines.native.cuda import products
from arctic_workers.inference.engines.native.cuda.products import (
    OUTPUTS,
    PROGRAMS,
    SIZES,
    SMALL,
    Matrices,
    Tiles,
    dense_tiles,
    gated,
    product,
    sections_of,
    shape_of,
    tile_size,
)

FORMATS = ["e4m3", "e4m3 by block", "bf16", "fp32"]
BLOCK = (24, 48)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def matrices(form: str, *shape: int, block: Block = BLOCK) -> Matrices:
    """Return random weights [E, N, K] of variance 1 / K."""
    weights = torch.randn(shape) * shape[-1] ** -0.5
    if form == "e4m3":
        return Matrices(*quantize(weights))
    if form == "e4m3 by block":
        return Matrices(*quantize_blocks(weights, block), block)
    return Matrices(weights.bfloat16() if form == "bf16" else weights)


def exact(x_RK: Tensor, weights: Matrices, matrix: int = 0) -> Tensor:
    """Return the product with one of the matrices in float64."""
    wide = weights.values.double()
    if weights.scale is not None and weights.block is None:
        wide = wide * weights.scale.double()[..., None]
    elif weights.scale is not None:
        # An e4m3 value times fp32 has more bits than fp32.
        wide = wide * dequantize(torch.ones_like(weights.values.float()), weights.scale, weights.block).double()
    return x_RK.double() @ wide[matrix].T


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the greatest error of a row, of its magnitude: a single number may be a small difference of large ones."""
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


def test_every_e4m3_value_is_multiplied_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    values = torch.where(codes.isnan(), 0.0, codes.float()).view(1, 16, 16)
    scale_EN = 2.0 ** torch.arange(-8, 8).view(1, 16)
    rows_SK = torch.diag(2.0 ** torch.arange(-10, 6))
    y_SN = product(rows_SK, Matrices(values.to(FP8), scale_EN), dense_tiles(16, "cpu"))
    assert torch.equal(y_SN, rows_SK @ (values * scale_EN[..., None])[0].T)
    assert len(set(values.flatten().tolist())) == 253  # of 254 finite ones, as 0 and -0 are equal


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("rows", "outputs", "columns"), [(1, 64, 128), (1, 7, 40), (13, 65, 129), (70, 33, 30), (3, 1, 1)]
)
def test_sizes_need_not_fill_tiles(form: str, rows: int, outputs: int, columns: int) -> None:
    weights, other = matrices(form, 1, outputs, columns), matrices(form, 1, outputs, columns)
    x_SK = torch.randn(rows, columns)
    tiles = dense_tiles(rows, "cpu")
    first, second = exact(x_SK, weights), exact(x_SK, other)
    assert error(product(x_SK, weights, tiles), first) < 4e-7
    assert error(gated(x_SK, weights, other, tiles), silu(first) * second) < 1e-6


@pytest.mark.parametrize("block", [(8, 8), (16, 32), (128, 128), (64, 72)])
def test_blocks_of_scales_have_any_size(block: Block) -> None:
    weights = matrices("e4m3 by block", 2, 70, 150, block=block)
    assert weights.scale is not None
    weights.scale.mul_(torch.rand_like(weights.scale) + 0.5)
    x_SK = torch.randn(4, 150)
    tiles = Tiles(torch.tensor([[1, 0, 4]], dtype=torch.int32), None, SMALL)
    assert error(product(x_SK, weights, tiles), exact(x_SK, weights, 1)) < 4e-7


def test_many_columns_are_added_by_sections() -> None:
    weights = matrices("e4m3", 1, 70, 1000)
    assert sections_of(1, 70, 1000, 64)[0] > 1
    x_SK = torch.randn(5, 1000)
    for _ in range(2):  # what counts sections is left as it was
        y_SN = product(x_SK, weights, dense_tiles(5, "cpu"))
        assert error(y_SN, exact(x_SK, weights)) < 4e-7
    assert not weights.arrivals.any()


@pytest.mark.parametrize("form", FORMATS)
def test_each_row_meets_its_expert(form: str) -> None:
    w1, w3 = matrices(form, 4, 40, 60), matrices(form, 4, 40, 60)
    x_SK = torch.randn(9, 60)
    rows_R = torch.tensor([3, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1], dtype=torch.int32)
    # Nobody chose expert 1; expert 2 has more rows than a tile; tiles without rows may name any expert.
    table_M3 = torch.tensor(
        [[0, 0, 2], [2, 2, 8], [2, 10, 1], [3, 11, 1], [1 << 20, 12, 0], [0, 0, 0]], dtype=torch.int32
    )
    experts = [0] * 2 + [2] * 9 + [3]
    tiles = Tiles(table_M3, rows_R, SMALL)
    x_RK = x_SK[rows_R]
    first = torch.stack([exact(x_RK, w1, expert)[r] for r, expert in enumerate(experts)])
    second = torch.stack([exact(x_RK, w3, expert)[r] for r, expert in enumerate(experts)])
    assert error(product(x_SK, w1, tiles), first) < 4e-7
    assert error(gated(x_SK, w1, w3, tiles), silu(first) * second) < 1e-6
    assert torch.equal(product(x_RK, w1, tiles.of_slots()), product(x_SK, w1, tiles))


@pytest.mark.parametrize(("magnitude", "bound"), [(1e5, 4e-7), (1.0, 4e-7), (1e-2, 4e-7), (1e-4, 2e-6)])
def test_large_and_small_rows_keep_their_precision(magnitude: float, bound: float) -> None:
    weights = matrices("e4m3", 1, 64, 256)
    x_SK = torch.randn(3, 256) * magnitude
    assert error(product(x_SK, weights, dense_tiles(3, "cpu")), exact(x_SK, weights)) < bound


def test_a_gate_is_silu_where_it_is_closed_and_where_it_is_open() -> None:
    gates_K = torch.tensor([-80.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 80.0])
    same = Matrices(torch.eye(9)[None])
    found = gated(gates_K[None], same, same, dense_tiles(1, "cpu"))[0]
    wanted = silu(gates_K.double()) * gates_K
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0.0)


def test_bf16_weights_meet_rows_whole_where_tensor_cores_take_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    dot = InterpreterBuilder.create_dot

    def of_tf32(builder: object, a: Handle, b: Handle, d: Handle, precision: object, *rest: object) -> Handle:
        assert str(precision).endswith("TF32")
        a, b = (Handle((of.data.view(np.uint32) & 0xFFFFE000).view(np.float32), of.dtype) for of in (a, b))
        return dot(builder, a, b, d, precision, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", of_tf32)
    weights, x_SK = matrices("bf16", 1, 64, 200), torch.randn(3, 200)
    assert error(product(x_SK, weights, dense_tiles(3, "cpu")), exact(x_SK, weights)) < 4e-7


@pytest.fixture
def ordered_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dots add columns in order, as tensor cores do for any number of rows: numpy's order depends on shapes."""

    def dot(_: object, a: Handle, b: Handle, d: Handle, *__: object) -> Handle:
        total = d.data.copy()
        for k in range(a.data.shape[1]):
            total += np.float32(a.data[:, k : k + 1]) * np.float32(b.data[k : k + 1])
        return Handle(total, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.mark.usefixtures("ordered_dots")
@pytest.mark.parametrize("form", FORMATS)
def test_a_row_has_the_same_bits_alone_and_among_others(form: str) -> None:
    columns = 520 if form == "e4m3" else 260  # of two sections or more
    w1, w3 = matrices(form, 1, 20, columns), matrices(form, 1, 20, columns)
    x_SK = torch.randn(70, columns)
    tiles = dense_tiles(70, "cpu")
    many, many_gated = product(x_SK, w1, tiles), gated(x_SK, w1, w3, tiles)
    for first, rows in ((40, 1), (30, 11)):
        some, own = slice(first, first + rows), dense_tiles(rows, "cpu")
        assert own.size < tiles.size
        assert torch.equal(product(x_SK[some], w1, own), many[some])
        assert torch.equal(gated(x_SK[some], w1, w3, own), many_gated[some])


@pytest.mark.usefixtures("ordered_dots")
@pytest.mark.parametrize("form", ["e4m3", "e4m3 by block"])
def test_sections_give_the_same_bits_as_programs_or_in_one(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = 600 if form == "e4m3" else 150
    w1, w3 = matrices(form, 2, 20, columns), matrices(form, 2, 20, columns)
    x_SK = torch.randn(5, columns)
    tiles = Tiles(torch.tensor([[1, 0, 2], [0, 2, 3]], dtype=torch.int32), None, SMALL)
    apart = product(x_SK, w1, tiles), gated(x_SK, w1, w3, tiles)
    grids = []

    def started(kernel: object, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
        grids.append(grid)
        launch(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(products, "launch", started)
    step = 64 if w1.block is None else 16
    sections = sections_of(2, 20, columns, step)
    monkeypatch.setattr(products, "sections_of", lambda *_: sections)
    monkeypatch.setattr(products, "PROGRAMS", 1)
    together = product(x_SK, w1, tiles), gated(x_SK, w1, w3, tiles)
    assert grids == [(2, 1, 1)] * 2
    assert sections[0] > 1
    assert all(map(torch.equal, apart, together))


def test_no_rows_are_no_work() -> None:
    weights = matrices("bf16", 1, 8, 8)
    assert product(torch.empty(0, 8), weights, dense_tiles(0, "cpu")).shape == (0, 8)


@pytest.mark.parametrize("rows", [1, 8, 9, 31, 33, 100])
def test_dense_tiles_have_each_row_once(rows: int) -> None:
    tiles = dense_tiles(rows, "cpu")
    slots = [slot for _, first, count in tiles.table_M3.tolist() for slot in range(first, first + count)]
    assert slots == list(range(rows))
    assert tiles.size == tile_size(rows)
    assert int(tiles.table_M3[:, 2].max()) <= tiles.size


@pytest.mark.parametrize("outputs", [1, 128, 608, 1152, 4864, 7168, 32000])
@pytest.mark.parametrize("columns", [1, 100, 608, 4864, 7168])
@pytest.mark.parametrize("count", [1, 2, 128])
def test_sections_share_all_columns_out(outputs: int, columns: int, count: int) -> None:
    step = 64
    sections, length = sections_of(count, outputs, columns, step)
    assert length % step == 0
    assert (sections - 1) * length < columns <= sections * length
    programs = sections * min(count, 2) * -(-outputs // OUTPUTS)
    assert sections == 1 or programs <= PROGRAMS


def test_an_expert_and_a_slice_of_one_keep_a_card_busy() -> None:
    for count, outputs, columns in (
        (1, 7168, 7168),
        (1, 9216, 7168),
        (128, 4864, 7168),
        (128, 608, 7168),
        (1, 896, 7168),
    ):
        sections, _ = sections_of(count, outputs, columns, 64)
        programs = sections * min(count, 2) * -(-outputs // OUTPUTS)
        assert programs >= PROGRAMS / 2


@pytest.mark.parametrize("dtype", [FP8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("together", [False, True])
def test_tiles_of_every_size_add_in_the_same_steps(dtype: torch.dtype, together: bool) -> None:
    for capability in ((8, 9), (9, 0), (10, 0), (12, 0)):
        assert len({shape_of(capability, dtype, size, together).step for size in SIZES}) == 1
