"""Compiles Triton kernels for cards that are not here, and says what a card would need to run them.

Triton's own compiler, with the types and divisibilities that it takes from the arguments of a launch: what it makes is
what a card of that capability would run. As a program it writes a line of JSON a kernel and card.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import prod
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from arctic_model import fp8, rounded
from arctic_model.config import ArcticConfig
from arctic_model.launch import launch
from arctic_model.model import ArcticModel
from arctic_model.parallel import TensorSlice
from arctic_model.weights import materialize
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.cuda import attention, inputs, products, rank, tensor
from arctic_workers.inference.engines.native.cuda.rank import CudaRank
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import Window
from arctic_workers.training.fp8.rounding import Layout, by_both_of_groups, by_columns, by_rows, padded_ends
from benchmarks.form import print_table
from benchmarks.on_gpu.layers import BLOCK, blocks_of, prompts, singles
from benchmarks.on_gpu.training import CASE

CARDS = {89: ("L40S", 99 << 10), 90: ("H100, H200", 227 << 10), 100: ("B200", 227 << 10)}
"""A card of each compute capability, and the shared memory that one of its blocks has at most.

CUDA C++ Programming Guide 13.0, table of technical specifications per compute capability.
"""
WARP = 32
WIDE = 16
"""Bytes that a lane loads at most: fewer leave memory waiting."""


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel with what it is started with."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The kernel's own."""
        return str(self.kernel.__name__)

    @property
    def weighs(self) -> torch.dtype:
        """Of the greatest tensor, which is what a kernel is there to read."""
        tensors = [argument for argument in self.arguments if isinstance(argument, Tensor)]
        return max(tensors, key=lambda tensor: tensor.numel() * tensor.element_size()).dtype

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells apart launches that have code of their own."""
        return self.name, tuple(map(_kind, self.arguments)), tuple(sorted(self.constants.items(), key=str))


def _kind(argument: Any) -> object:
    """Return what Triton makes code for: of a number whether it is 1, is 0 modulo 16, and fits into 32 bits."""
    if isinstance(argument, Tensor):
        return argument.dtype
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument < 2**31
    return argument


@dataclass(frozen=True)
class Made:
    """What became of a launch for a card."""

    kernel: str
    module: str
    """That it stands in."""
    capability: int
    constants: str
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread that are in memory, as its registers don't hold them."""
    shared: int
    """Bytes of a block."""
    weighs: str
    """Numbers of the greatest tensor."""
    loads: tuple[int, ...]
    """Bytes that a lane has in a row of each load of a tile of these, by Triton's layout."""
    wanted: int
    """Loads of 16 bytes that these tiles take at least."""
    wide: int
    """Loads of 16 bytes or more in the code."""

    @property
    def faults(self) -> list[str]:
        """What a card would lose time by, or fail with, a sentence each."""
        faults = []
        if self.spilled:
            faults.append(f"{self.spilled} bytes of registers are spilled")
        if self.shared > CARDS[self.capability][1]:
            faults.append(f"{self.shared} bytes of shared memory, of {CARDS[self.capability][1]}")
        if any(load < WIDE for load in self.loads):
            faults.append(f"a lane loads {min(self.loads)} bytes of {self.weighs} at once, of {WIDE}")
        if self.wide < self.wanted:
            faults.append(f"{self.wide} loads have {WIDE} bytes, of {self.wanted}")
        return faults


class _Elsewhere:
    """Stands where Triton asks for the driver of the card: tells which one it is to compile for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        """Numbered by their capability: Triton keeps what it has made by device."""
        return self._capability

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, WARP)


def made(one: Launch, capability: int) -> Made:
    """Compile what a launch asks for; from then on this process starts no kernel. Raises what Triton raises."""
    arguments = [one.dtype if isinstance(one, Tensor) else one for one in one.arguments]
    driver.set_active(_Elsewhere(capability))
    compiled = one.kernel.warmup(*arguments, grid=(1,), **one.constants)
    registers, stack = usage_of(compiled.asm["cubin"])
    tiles = list(tiles_of(compiled.asm["ttgir"], one.weighs))
    lanes = WARP * compiled.metadata.num_warps
    return Made(
        one.name,
        one.kernel.fn.__module__,
        capability,
        " ".join(f"{name}={value}" for name, value in one.constants.items()),
        registers,
        stack,
        int(compiled.metadata.shared),
        str(one.weighs).removeprefix("torch."),
        tuple(lane for _, lane in tiles),
        sum(-(-size // (lanes * WIDE)) for size, _ in tiles),
        wide_loads(compiled.asm["ptx"]),
    )


def usage_of(cubin: bytes) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes of its stack and local memory: spilled registers are there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found, f"cuobjdump says nothing of registers: {said}"
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def wide_loads(ptx: str) -> int:
    """Count the loads of 16 bytes or more in PTX: to registers, and by `cp.async` to shared memory."""
    copied = re.findall(r"cp\.async\.\w+\.shared\.global[^;]*?\], (0x\w+|\d+)", ptx)
    loaded = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)", ptx)
    sizes = [*(int(size, 0) for size in copied), *(int(count or 1) * int(bits) // 8 for count, bits in loaded)]
    return sum(size >= WIDE for size in sizes)


_TYPES = {
    torch.float8_e4m3fn: ("f8E4M3FN", 1),
    torch.uint8: ("i8", 1),
    torch.bfloat16: ("bf16", 2),
    torch.int16: ("i16", 2),
    torch.float32: ("f32", 4),
    torch.int32: ("i32", 4),
}


def tiles_of(ttgir: str, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Yield for each load of a tile of such numbers its bytes, and those that a lane has in a row, by its layout.

    Of tiles that differ in size the largest are meant: activations have the dtype of weights in fp32.
    """
    name, size = _TYPES[dtype]
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<\{sizePerThread = \[([\d, ]+)\]", ttgir, re.MULTILINE))
    loads = re.findall(rf"(?:tt\.load|async_copy_global_to_local) .*: tensor<([\dx]+)x!tt\.ptr<{name}>, (#\w+)>", ttgir)
    tiles = [(size * prod(map(int, shape.split("x"))), layout) for shape, layout in loads if "x" in shape]
    for tile, layout in tiles:
        if tile == max(tiles)[0]:
            yield tile, size * prod(map(int, layouts[layout].split(", ")))


@dataclass(frozen=True)
class Case:
    """A rank, and steps of it."""

    weights: str
    """`fp8`, `fp8 in blocks`, `bf16` or `fp32`."""
    kept: torch.dtype
    """Of keys and values."""
    steps: tuple[list[Part], ...]
    window: Window | None = None
    rounds: bool = False
    """Whether rows of large steps are rounded to FP8."""


ONE, PROMPT = singles(1, 2048), prompts(1, 2048)
EVERYWHERE = (
    Case("fp8", torch.bfloat16, (ONE, singles(64, 2048), PROMPT)),
    Case("fp8", torch.bfloat16, (PROMPT,), rounds=True),
)
ON_HOPPER = (
    Case("fp8", torch.bfloat16, (singles(16, 2048),)),
    Case("fp8 in blocks", fp8.DTYPE, (ONE, PROMPT)),
    Case("bf16", torch.bfloat16, (ONE, PROMPT), Window(1024, 4)),
    Case("fp32", torch.float32, (ONE,)),
)
"""What is compiled for no other card: all of it for all would take minutes."""
CONFIG = ArcticConfig.preset("arctic").replace(num_hidden_layers=1)
DEVICE = torch.device("cuda", 0)


def launches(capability: int) -> list[Launch]:
    """Return all that engine and trainer start on such a card in the cases' steps, at their sizes, each once.

    Steps are computed with tensors that have no values: nothing is started, and no GPU is asked.
    """
    found: dict[tuple[Any, ...], Launch] = {}

    def taken_down(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:  # noqa: ARG001
        one = Launch(kernel, arguments, constants)
        found.setdefault(one.key, one)

    with ExitStack() as stack:
        for module in _starting():
            stack.enter_context(mock.patch.object(module, "launch", taken_down))
        stack.enter_context(mock.patch.object(products, "capability_of", return_value=divmod(capability, 10)))
        stack.enter_context(mock.patch.object(inputs, "lay_out", _really(attention.lay_out)))
        stack.enter_context(mock.patch.object(rank, "second_stream", return_value=None))
        stack.enter_context(mock.patch.object(torch.cuda, "graph_pool_handle", return_value=None))
        stack.enter_context(mock.patch.object(tensor, "_gather"))
        # Of experts' products in FP8: torch's own, and on cards other than Hopper a loop over what a host has read.
        stack.enter_context(mock.patch.object(rounded, "at_once", return_value=True))
        for case in (*EVERYWHERE, *(ON_HOPPER if capability == 90 else ())):
            model = _shape(case.weights)
            with FakeTensorMode(allow_non_fake_inputs=True):
                _compute(model, case)
        with FakeTensorMode(allow_non_fake_inputs=True):
            _share_out()
            _round()
    return list(found.values())


def _starting() -> list[ModuleType]:
    """Return the modules of ours that start kernels."""
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("arctic_")]
    return [module for module in ours if getattr(module, "launch", None) is launch]


def _really(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function that fills a tensor on the host have a real one."""

    def call(*arguments: Any) -> Tensor:
        with unset_fake_temporarily():
            return function(*arguments)

    return call


def _shape(weights: str) -> ArcticModel:
    with torch.device("meta"):
        model = ArcticModel(CONFIG, embed=False)
    if weights.startswith("fp8"):
        with torch.device("meta"):
            fp8.quantize_model(model, block=(128, 128) if weights.endswith("blocks") else None)
    elif weights == "bf16":
        model.to(torch.bfloat16)
    return model.requires_grad_(False)


def _compute(model: ArcticModel, case: Case) -> None:
    for name in list(model.state_dict()):
        materialize(model, name, DEVICE)
    cache = PagedCache(
        range(1),
        blocks=1 + 64 * blocks_of(2048),
        block_size=BLOCK,
        heads=CONFIG.num_key_value_heads,
        head_dim=CONFIG.head_dim,
        dtype=case.kept,
        window=case.window,
        device=DEVICE,
    )
    computing = CudaRank(model, cache, rounds=case.rounds)
    for parts in case.steps:
        tokens = sum(len(part.tokens) for part in parts)
        x_TD = computing.run(parts, torch.empty(tokens, CONFIG.hidden_size, device=DEVICE))
        computing.logits(x_TD, range(len(parts)))


def _share_out() -> None:
    """Do what tensor ranks do beside: eight of them, with whole experts."""
    rows, experts = 16, TensorSlice(1, 8, whole_experts=True).experts(CONFIG.num_local_experts)
    x_TD = torch.empty(rows, CONFIG.hidden_size, device=DEVICE)
    tensor.Sums(8)(x_TD)
    tiles = products.dense_tiles(rows, DEVICE)
    tensor.own_tiles(tiles, experts)
    tensor.clear_others(x_TD, tiles, experts)


def _round() -> None:
    """Round what a training in FP8 multiplies: rows of experts, and the experts."""
    config, rows = CASE.config, CASE.tokens * CASE.config.num_experts_per_tok
    x_PN = torch.empty(rows, config.hidden_size, dtype=torch.bfloat16, device=DEVICE)
    ends_E = torch.empty(config.num_local_experts, dtype=torch.int32, device=DEVICE)
    by_both_of_groups(x_PN, Layout.of(ends_E, padded_ends(ends_E), rows))
    experts = (config.num_local_experts, config.intermediate_size, config.hidden_size)
    weights = torch.empty(experts, dtype=torch.bfloat16, device=DEVICE)
    by_rows(weights)
    by_columns(weights)


def all_made(capabilities: Iterable[int] = CARDS) -> Iterator[Made]:
    """Compile every kernel of ours for every card."""
    for capability in capabilities:
        for one in launches(capability):
            yield made(one, capability)


def report() -> None:
    """Compile all of them, and print a table."""
    print_made(all_made())


def print_made(found: Iterable[Made]) -> None:
    """Print what became of kernels."""
    print_table(
        "The kernels of engine and trainer as Triton compiles them, at the sizes of the 480B and of the training",
        (
            "kernel",
            "card",
            "numbers",
            "registers",
            "bytes spilled",
            "KiB shared",
            "bytes a lane",
            "wide loads",
            "faults",
        ),
        [
            (
                one.kernel,
                CARDS[one.capability][0],
                one.weighs,
                one.registers,
                one.spilled,
                f"{one.shared / 1024:.0f}",
                ", ".join(map(str, sorted(set(one.loads)))),
                one.wide,
                "; ".join(one.faults),
            )
            for one in found
        ],
    )


def main() -> None:
    """Write a line of JSON a kernel and card."""
    for one in all_made():
        print(json.dumps(asdict(one)), flush=True)


if __name__ == "__main__":
    main()
