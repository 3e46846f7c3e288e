"""What loading costs: the weights' own memory, and next to nothing beside it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes
from arctic_model.parallel import LayerSlice
from arctic_model.quantization import Quantization
from arctic_model.quantize import quantize_checkpoint
from arctic_model.weights import Checkpoint, TensorEntry, write_config, write_weights
from arctic_workers.inference.engines.native import group, runner
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.kernel import rank
from arctic_workers.inference.engines.native.kernel.library import library
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.engines.native.runner import TorchRank, compute_of, load_slice
from arctic_workers.inference.engines.native.step import Part

pytestmark = pytest.mark.processes

WIDE = ArcticConfig.preset("arctic-466m").replace(
    num_hidden_layers=4, moe_layer_frequency=1, max_position_embeddings=64, vocab_size=8001
)
"""240M parameters; of lm_head, the largest matrix, the rows are padded."""
LOAD = """
import sys
from pathlib import Path
import torch
from arctic_model.config import ArcticConfig
from arctic_model.parallel import LayerSlice
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.kernel.library import library
from arctic_workers.inference.engines.native.runner import compute_of, load_slice

def now(key):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return 1024 * int(line.split()[1])

folder, weights = Path(sys.argv[1]), sys.argv[2]
library()
config = ArcticConfig.from_folder(folder)
layers = range(config.num_hidden_layers)
cache = PagedCache(
    layers, blocks=4, block_size=16, heads=config.num_key_value_heads, head_dim=config.head_dim, dtype=torch.bfloat16
)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before, shares = now("VmRSS"), []
model = load_slice(folder, config, LayerSlice(layers, True, True), weights, shares.append)
compute = compute_of(model, cache)
assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 100
print(now("VmRSS") - before, now("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wide")
    write_config(made, WIDE)
    entries = [TensorEntry(name, shape, torch.bfloat16) for name, shape in tensor_shapes(WIDE).items()]
    shapes = {entry.name: entry.shape for entry in entries}
    write_weights(made, entries, lambda name: torch.full(shapes[name], 0.01, dtype=torch.bfloat16))
    return made


@pytest.mark.parametrize(
    "stored",
    [
        Quantization("compressed-tensors", "tensor"),
        Quantization("compressed-tensors", "channel"),
        Quantization("compressed-tensors", "block", (16, 24)),
        Quantization("fp8", "block"),  # DeepSeek's
    ],
    ids=lambda stored: f"{stored.scales} {stored.block}",
)
def test_a_checkpoint_in_fp8_computes_what_its_numbers_say(
    model_folder: Path, tmp_path: Path, stored: Quantization
) -> None:
    folder = tmp_path / "fp8"
    quantize_checkpoint(model_folder, folder, stored)
    config = Checkpoint(folder).config
    part = Part(0, tuple(range(3, 40)), (0, 1, 2), None)
    found = []
    for weights, make in (("fp8", compute_of), ("fp8", TorchRank), ("fp32", compute_of)):  # as stored, and widened
        model = load_slice(folder, config, LayerSlice(range(4), True, True), weights, lambda _: None)
        cache = PagedCache(
            range(4),
            blocks=3,
            block_size=16,
            heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=torch.float32,
        )
        compute = make(model, cache)
        found.append(compute.logits(compute.run([part], None), range(len(part.tokens)))[0])
    for served in found[:2]:
        assert (served - found[2]).norm() <= 1e-5 * found[2].norm()


@pytest.mark.skipif(library() is None, reason="there is no compiled code for this machine")
@pytest.mark.parametrize(("weights", "size"), [("fp8", 1), ("bf16", 2)])
def test_no_second_copy_of_the_weights_comes_to_be(folder: Path, weights: str, size: int) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, folder, weights], check=True, capture_output=True, text=True)
    final, peak = map(int, done.stdout.split())
    shapes = {name: torch.Size(shape).numel() for name, shape in tensor_shapes(WIDE).items()}
    embedding = (4 - size) * shapes["model.embed_tokens.weight"] if weights == "fp8" else 0  # fp32, beside FP8
    needed = size * sum(shapes.values()) + embedding
    assert needed < final < 1.1 * needed
    assert peak < 1.25 * needed


def resident() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["VmRSS"].split()[0])


def test_the_cache_is_sized_when_torch_has_all_that_it_computes_with(
    folder: Path, make_group: Callable[..., list[InferenceGroup]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or cache and weights together would take more than there is, as the cache fills."""
    monkeypatch.setattr(runner, "library", lambda: None)
    monkeypatch.setattr(rank, "library", lambda: None)
    taken = []

    def left() -> int:
        taken.append(resident())
        return 1 << 30

    monkeypatch.setattr(group, "available_memory", left)
    [world] = make_group(1, quantization={"weights": "bf16"})
    plan = plan_group(world.model_copy(update={"model_folder": str(folder)}))
    made = group.bring_up(plan, world, 0, on_loss=pytest.fail, on_stop=pytest.fail, progress=lambda _: None)
    [sized] = taken
    assert resident() - sized < 100 << 20
    part = Part(0, tuple(range(20)), (0, 1), None)
    assert made.runner.run([part], None).isfinite().all()
