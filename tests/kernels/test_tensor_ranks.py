"""Tensor ranks that are processes, with gloo in place of NCCL, and what their kernels do."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import byte_tokenizer, write_model
from torch import Tensor

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup, Ports
from arctic_model.config import ArcticConfig
from arctic_model.devices import CPU
from arctic_model.lora import A, B, targets
from arctic_model.parallel import TensorSlice
from arctic_model.peft import write_adapter
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.cuda import tensor
from arctic_workers.inference.engines.native.cuda.products import Tiles
from arctic_workers.inference.engines.native.cuda.rank import CudaRank
from arctic_workers.inference.engines.native.cuda.team import Leader
from arctic_workers.inference.engines.native.cuda.tensor import Sums, clear_others, own_tiles
from arctic_workers.inference.engines.native.group import Rank, bring_up, join
from arctic_workers.inference.engines.native.link import PeerLost
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.engines.native.runner import Runner
from arctic_workers.inference.engines.native.step import Part

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "moe_layer_frequency": 2,
    "num_local_experts": 3,
}
WINDOW = {"maxLength": 256, "window": 20, "sinks": 3}


def part(start: int, tokens: Sequence[int], *blocks: int, **more: Any) -> Part:
    return Part(start, tuple(tokens), blocks, None, **more)


STEPS = [
    [part(0, range(40, 45), 1, 2), part(0, (7, 8), 3, adapter=0)],
    [part(5, (3,), 1, 2), part(2, (5,), 3)],
    [part(38, (60, 61, 62), 1, 2, 4), part(3, (11, 12), 3, adapter=0)],  # beyond the window, of keys that are zeros
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder; beside it is that of an adapter."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny", byte_tokenizer(), vocab_size=90, **SMALL)
    config = ArcticConfig.from_folder(folder / "tiny")
    torch.manual_seed(1)
    tensors = {}
    for name, (outputs, inputs) in targets(config).items():
        tensors[f"{name}.{A}.weight"] = torch.randn(4, inputs)
        tensors[f"{name}.{B}.weight"] = torch.randn(outputs, 4) / 8
    (folder / "adapter").mkdir()
    write_adapter(folder / "adapter", tensors, 4, 2.0, "")
    return folder


@pytest.fixture
def world(model: Path, tmp_path: Path) -> Callable[..., InferenceGroup]:
    """Makes what a pod is told that is alone."""

    def make(**spec: Any) -> InferenceGroup:
        adapters = [{"name": "adapter", "uri": f"file://{model / 'adapter'}"}]
        manifest = {
            "model": {"uri": "file:///models/tiny", "adapters": adapters},
            "batching": {"maxSequences": 2, "tokenBudget": 64},
            "quantization": {"weights": "fp8", "kvCache": "fp32"},
            "attention": WINDOW,
            **spec,
        }
        return InferenceGroup(
            namespace="tests",
            name="tiny",
            uid="0123456789abcdef",
            hosts=["127.0.0.1"],
            ports=Ports(control=1, metrics=2, http=3, rendezvous=4),
            tls_folder=None,
            termination_message=str(tmp_path / "end.json"),
            spec=ArcticInferenceSpec.model_validate(manifest),
            group="tiny-01234-1-g0",
            revision="1",
            model_folder=str(model / "tiny"),
        )

    return make


def no_loss(sentence: str) -> None:
    raise AssertionError(sentence)


def no_stop() -> None:
    raise AssertionError("told to stop")


def one_rank(group: InferenceGroup) -> Rank:
    return bring_up(plan_group(group), group, 0, on_loss=no_loss, on_stop=no_stop, progress=lambda _: None)


@contextmanager
def two_ranks(group: InferenceGroup, on_loss: Callable[[str], None] = no_loss) -> Iterator[tuple[Rank, Leader]]:
    """Let this process be the first of two, without a GPU."""
    plan = plan_group(group)
    team = Leader(group, 0, TensorSlice(0, plan.tensor, plan.whole_experts), CPU, on_loss)
    try:
        yield join(plan, group, 0, CPU, team, on_loss=on_loss, on_stop=no_stop, progress=lambda _: None), team
    finally:
        team.kill()
        dist.destroy_process_group()


@torch.inference_mode()
def answers(runner: Runner) -> list[Tensor]:
    """Return the logits of all tokens of all steps, and a step's hidden states that began with those of another pod."""
    found = []
    for parts in STEPS:
        x_TD = runner.run(parts, None)
        found.append(runner._compute.logits(x_TD, range(len(x_TD)))[0].clone())
    return [*found, runner.run([part(0, (1, 2), 5)], torch.linspace(-1, 1, 64).view(2, 32)).clone()]


@pytest.mark.processes
@pytest.mark.parametrize("whole_experts", [False, True])
def test_two_ranks_answer_as_one_and_end_in_order(world: Callable[..., InferenceGroup], *, whole_experts: bool) -> None:
    spec: dict[str, Any] = {"engine": {"name": "native", "options": {"enable_expert_parallel": whole_experts}}}
    expected = answers(one_rank(world(**spec)).runner)
    with two_ranks(world(parallelism={"pipeline": 1, "tensor": 2}, **spec)) as (rank, team):
        compute = rank.runner._compute
        assert isinstance(compute, CudaRank)
        assert compute._cache.tensors(0)["keys"].shape[0] == 1  # of two heads
        for found_TX, wanted_TX in zip(answers(rank.runner), expected, strict=True):
            torch.testing.assert_close(found_TX, wanted_TX, rtol=1e-5, atol=1e-5)
        rank.runner.stop()
        assert [process.poll() for process in team._processes] == [0]


@pytest.mark.processes
def test_a_rank_that_ends_before_it_is_told_to_is_the_end_of_the_group(world: Callable[..., InferenceGroup]) -> None:
    lost, told = threading.Event(), []

    def on_loss(sentence: str) -> None:
        told.append(sentence)
        lost.set()

    team = Leader(world(parallelism={"pipeline": 1, "tensor": 2}), 0, TensorSlice(0, 2), CPU, on_loss)
    try:
        assert not told
        os.kill(team._processes[0].pid, signal.SIGKILL)
        assert lost.wait(60)
        assert told == ["tensor rank 1 of this pod has ended by signal 9; see its log, which is this pod's"]
        with pytest.raises(PeerLost, match="tensor rank 1 of this pod is gone"):
            team.least(0)
    finally:
        team.kill()
        dist.destroy_process_group()


@pytest.mark.processes
def test_what_another_rank_can_not_load_is_what_people_are_told(
    world: Callable[..., InferenceGroup], model: Path, tmp_path: Path
) -> None:
    """Of a checkpoint that goes away while the pod starts."""
    group = world(parallelism={"pipeline": 1, "tensor": 2})
    plan = plan_group(group)
    gone = group.model_copy(update={"model_folder": str(shutil.copytree(model / "tiny", tmp_path / "gone"))})
    (tmp_path / "gone" / "model.safetensors").unlink()
    team = Leader(gone, 0, TensorSlice(0, 2), CPU, no_loss)
    try:
        with pytest.raises(Refused, match=r"tensor rank 1: .*gone has neither .* it holds no weights"):
            join(plan, group, 0, CPU, team, on_loss=no_loss, on_stop=no_stop, progress=lambda _: None)
    finally:
        team.kill()
        dist.destroy_process_group()


def sums(monkeypatch: pytest.MonkeyPatch, parts: Sequence[Tensor]) -> Tensor:
    """What ranks with these summands get, one after the other in this process: first of all what each has added."""
    added: list[Tensor] = []

    def gather(into_X: Tensor, x_X: Tensor) -> None:
        whole = len(x_X) == parts[0].numel()
        added.append(x_X)
        into_X.copy_(torch.cat([each.flatten() for each in parts]) if whole else torch.zeros_like(into_X))

    def exchange(into_X: Tensor, x_X: Tensor) -> None:
        index = next(index for index, each in enumerate(parts) if torch.equal(each.flatten(), x_X))
        into_X.copy_(torch.cat([each.flatten().chunk(len(parts))[index] for each in parts]))

    monkeypatch.setattr(tensor, "_gather", gather)
    monkeypatch.setattr(dist, "all_to_all_single", exchange)
    got = [Sums(len(parts))(each) for each in parts]
    if len(added[0]) == parts[0].numel():
        assert all(torch.equal(each, got[0]) for each in got)
        return got[0]
    return torch.cat(added).view_as(parts[0])


@pytest.mark.parametrize("rows", [1, 5])
def test_sums_have_the_same_bits_whoever_adds_them(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """In the order of the ranks, for which the greatest come first and last."""
    parts = [scale * torch.randn(rows, 12) for scale in (1e4, 1.0, 1e-3, -1e4)]
    expected_TD = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert torch.equal(sums(monkeypatch, parts), expected_TD)
    monkeypatch.setattr(tensor, "AT_ONCE", 0)
    assert torch.equal(sums(monkeypatch, parts), expected_TD)


def test_a_rank_has_the_tiles_of_its_experts_and_zeros_in_the_slots_of_others() -> None:
    table_M3 = torch.tensor([[1, 0, 2], [2, 2, 3], [2, 5, 1], [4, 6, 4], [0, 0, 0]], dtype=torch.int32)
    tiles = Tiles(table_M3, None, 8)
    own = own_tiles(tiles, range(2, 4))
    assert own.size == 8
    assert own.table_M3[:, 1:].tolist() == [[0, 0], [2, 3], [5, 1], [6, 0], [0, 0]]
    assert own.table_M3[1:3, 0].tolist() == [0, 0]
    y_RD = torch.full((10, 1100), torch.nan)
    y_RD[2:6] = 7.0
    clear_others(y_RD, tiles, range(2, 4))
    assert y_RD[2:6].eq(7.0).all()
    assert y_RD[:2].eq(0.0).all()
    assert y_RD[6:].eq(0.0).all()
