"""The kernels that round to FP8, compiled for cards that are not here: at the sizes of the 480B, 16 experts a rank."""

import subprocess
import sys

AHEAD = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from arctic_workers.training.fp8 import rounding
from benchmarks.on_gpu.ahead import CARDS, Launch, made

found = []
rounding.launch = lambda kernel, grid, *given, **constants: found.append(Launch(kernel, given, constants))
with FakeTensorMode():
    gpu = torch.device("cuda", 0)
    x_PD = torch.empty(4096, 7168, dtype=torch.bfloat16, device=gpu)
    ends_E = torch.empty(16, dtype=torch.int32, device=gpu)
    layout = rounding.Layout.of(ends_E, rounding.padded_ends(ends_E), 4096)
    rounding.by_both_of_groups(x_PD, layout)
    rounding.by_both(x_PD)
    rounding.by_rows(x_PD)
    rounding.by_columns(x_PD)
for capability in CARDS:
    for launch in {one.key: one for one in found}.values():
        one = made(launch, capability)
        print(one.kernel, capability, one.faults)
"""


def test_nothing_is_spilled_and_every_load_is_wide() -> None:
    said = subprocess.run([sys.executable, "-c", AHEAD], check=True, stdout=subprocess.PIPE, text=True).stdout
    kernels = [line for line in said.splitlines() if line.startswith(("find_magnitudes", "round_tiles"))]
    assert len(kernels) == 3 * 8
    assert [line for line in kernels if not line.endswith("[]")] == []
