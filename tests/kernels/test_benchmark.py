"""The benchmark of a GPU from its first part to its last, on the CPU, at sizes that an interpreter bears."""

import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.planning.training_time import RankStep
from arctic_workers.inference.engines.native.cuda import rank
from benchmarks import gpu
from benchmarks.on_gpu import ceilings, decode, layers, prefill, training
from benchmarks.on_gpu.peer import Loss, Peer

CPU = torch.device("cpu")
TINY = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_local_experts=4,
    moe_layer_frequency=1,
)
CLAIMED = {
    "read_tb_s",
    "bf16_tflops",
    "train_vs_torch",
    "train_tflops",
    "train_fp8_vs_bf16",
    "decode_b1_of_limit",
    "decode_b16_of_limit",
    "decode_b64_of_limit",
    "prefill_of_gemm",
}
CONTEXT = 18


def once(call: Callable[[], object], device: torch.device, budget: float = 1.0) -> float:
    call()
    return 1.0


def uncompiled(loss: Loss) -> Loss:
    return loss


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sizes that Triton's interpreter bears; what only a GPU knows is told."""
    for module in (ceilings, decode, prefill, training):
        monkeypatch.setattr(module, "seconds", once)
    monkeypatch.setattr(ceilings, "measured", partial(ceilings.measured, size=1 << 16, shapes=((32, 32, 32),)))
    monkeypatch.setattr(decode, "CONTEXT", CONTEXT)
    monkeypatch.setattr(decode, "BATCHES", (1, 2, 3))
    monkeypatch.setattr(prefill, "STEPS", {"a prompt": layers.prompts(1, CONTEXT)})
    monkeypatch.setattr(prefill, "grouped_product", no_product)
    monkeypatch.setattr(prefill, "MOST", 3)
    monkeypatch.setattr(rank, "LEAST_ROWS", CONTEXT)
    monkeypatch.setattr(training, "CASE", RankStep(TINY, 1, 2, 16))
    monkeypatch.setattr(training, "Peer", partial(Peer, compile_=uncompiled))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def no_product(weights_ENK: Tensor, counts_E: Tensor, rows: int) -> Callable[[], Tensor]:
    """CPUs have no FP8 products."""
    assert int(counts_E.sum()) == rows
    return lambda: weights_ENK


@pytest.mark.usefixtures("small")
def test_every_part_comes_to_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    run = gpu.Measuring(CPU, layers=layers.loaded(TINY, CPU, 3, CONTEXT))
    gpu.run_parts(run, gpu.PARTS, lambda: None)
    said = capsys.readouterr()
    assert "failed" not in said.err
    names = {name.replace("b2_", "b16_").replace("b3_", "b64_") for name in run.found}
    assert names >= CLAIMED
    ended = re.findall(r"^([\w ]+): [a-z0-9_]+ [\d.e+-]+.* \(\d+ s\)$", said.out, re.MULTILINE)
    assert ended == [part.name for part in gpu.PARTS]
    # A single token's experts are two, and those of three at most all four.
    touched = re.findall(r"^([123]) +([\d.]+)", said.out, re.MULTILINE)
    assert touched[0] == ("1", "2.0")
    assert all(2 <= float(experts) <= 4 for _, experts in touched)
    # Where everything takes a second, all ratios are 1 but for the ones to what is read.
    for ratio in ("train_vs_torch", "train_fp8_vs_bf16", "prefill_of_gemm", "prefill_exact_of_gemm"):
        assert run.found[ratio] == 1.0
    assert 0 < run.found["decode_b1_of_limit"] < run.found["decode_b3_of_limit"]
