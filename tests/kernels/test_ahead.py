"""Kernels of engine and trainer compiled ahead for cards that are not here: by the compiler, not the interpreter."""

import json
import os
import subprocess
import sys
from pkgutil import iter_modules
from typing import Any

import pytest
import torch

from arctic_workers.inference.engines.native.cuda import kernels
from arctic_workers.training.fp8 import kernels as trainers
from benchmarks.on_gpu import ahead
from benchmarks.on_gpu.ahead import CARDS, WIDE, Made

READING = {"product", "attend_tiles"}
"""Those that read weights, or keys and values."""


@pytest.fixture(scope="module")
def compiled() -> list[Made]:
    """What became of each kernel; in a process of its own, as here Triton is its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.on_gpu.ahead"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-5000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    made = [Made(**line | {"loads": tuple(line["loads"])}) for line in lines]
    ahead.print_made(made)
    return made


@pytest.mark.parametrize("capability", CARDS)
def test_kernels_spill_nothing_fit_and_load_16_bytes_at_once(compiled: list[Made], capability: int) -> None:
    faults = {
        f"{one.kernel} of {one.weighs}, {one.constants}": one.faults
        for one in compiled
        if one.capability == capability and one.faults
    }
    assert faults == {}


@pytest.mark.parametrize("capability", CARDS)
def test_no_module_of_kernels_is_left_out(compiled: list[Made], capability: int) -> None:
    engines = {f"{kernels.__name__}.{module.name}" for module in iter_modules(kernels.__path__)}
    assert {one.module for one in compiled if one.capability == capability} == engines | {trainers.__name__}


def test_what_reads_weights_keys_and_values_was_seen_to_read_them(compiled: list[Made]) -> None:
    assert {one.kernel for one in compiled} >= READING
    for one in compiled:
        if one.kernel in READING:
            assert one.loads, f"no tile of {one.weighs} was found in {one.kernel}"
            assert 0 < one.wanted <= one.wide


def test_a_kernel_is_faulted_for_what_it_loses() -> None:
    good = Made("k", "m", 89, "", 128, 0, 99 << 10, "float8_e4m3fn", (WIDE, WIDE), 4, 4)
    assert good.faults == []
    for changed, fault in (
        ({"spilled": 8}, "8 bytes of registers are spilled"),
        ({"shared": (99 << 10) + 1}, "101377 bytes of shared memory, of 101376"),
        ({"loads": (WIDE, 8)}, "a lane loads 8 bytes of float8_e4m3fn at once, of 16"),
        ({"wide": 3}, "3 loads have 16 bytes, of 4"),
    ):
        assert Made(**{**vars(good), **changed}).faults == [fault]


PTX = """
    @%p1 cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
    cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x8, 0x8;
    ld.global.v4.b32 { %r3, %r4, %r5, %r6 }, [ %rd2 + 0 ];
    ld.global.L1::evict_last.v2.b64 { %rd3, %rd4 }, [ %rd2 + 0 ];
    ld.global.v2.b32 { %r3, %r4 }, [ %rd2 + 0 ];
    ld.global.b8 %rs1, [ %rd2 + 0 ];
"""


def test_wide_loads_are_counted_in_ptx() -> None:
    assert ahead.wide_loads(PTX) == 3


TTGIR = """
#blocked = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1], order = [1, 0]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1, 4], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1], order = [1, 0]}>
    %1 = ttg.async_copy_global_to_local %a, %b mask %m : tensor<64x128x!tt.ptr<f8E4M3FN>, #blocked> -> <64x128xf8E4M3FN>
    %2 = tt.load %x, %m, %z : tensor<16x128x!tt.ptr<f32>, #blocked1>
    %3 = tt.load %s : tensor<64x!tt.ptr<f32>, #blocked>
    %4 = tt.load %c : tensor<64x128x!tt.ptr<f32>, #blocked>
"""


def test_lanes_are_read_off_layouts_of_the_largest_tiles() -> None:
    assert list(ahead.tiles_of(TTGIR, torch.float8_e4m3fn)) == [(64 * 128, 8)]
    assert list(ahead.tiles_of(TTGIR, torch.float32)) == [(64 * 128 * 4, 32)]
