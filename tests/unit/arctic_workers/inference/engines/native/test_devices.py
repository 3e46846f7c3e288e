"""The engine's steps with all tensors on a GPU, without one: `FakeTensorMode` knows shapes, dtypes and devices alone.

Kernels are not started: what they are given is looked at.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import write_model
from tokenizers import Tokenizer
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arctic_api.world import InferenceGroup
from arctic_model import devices, rounded, weights
from arctic_model.config import ArcticConfig
from arctic_model.devices import Wait
from arctic_model.fp8 import DTYPE
from arctic_model.lora import targets
from arctic_model.parallel import TensorSlice
from arctic_model.peft import Addition
from arctic_model.tensor_files import TensorFile
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native import group as groups
from arctic_workers.inference.engines.native import runner as runners
from arctic_workers.inference.engines.native.group import bring_up
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.engines.native.runner import Runner
from arctic_workers.inference.engines.native.step import Adjustment, Draw, Known, Part
from arctic_workers.inference.engines.native.wire import decode_states, encode_states

pytest.importorskip("triton", reason="Triton is where a GPU may be")

from arctic_workers.inference.engines.native.cuda import (
    attention,
    graphs,
    inputs,
    norms,
    products,
    rank,
    rounding,
    routing,
    team,
    tensor,
)

GPU = torch.device("cuda", 0)
FREE = 80 << 30
MakeGroup = Callable[..., list[InferenceGroup]]
GREEDY = Draw(0, 0.0, 1.0, 0, None)
HOT = Draw(1, 1.0, 1.0, 0, None)
NUCLEUS = Draw(2, 0.7, 0.9, 20, 3, min_p=0.1)
PENALISED = Draw(3, 1.0, 0.9, 0, 0, adjustment=Adjustment(0.5, 0.1, 1.2, ((4, 1.0),), (5, 6), 99, ((7, 2), (8, 0))))
SINGLES = [Part(30, (3,), (0, 1), how) for how in (GREEDY, HOT, NUCLEUS, PENALISED)]
PROMPT = Part(0, tuple(range(20)), (2, 3), None)


class OnGpu(TorchDispatchMode):
    """Fails where an operation has tensors of both devices, where a copy lets the host wait, and where one is on the
    second stream: the first may read it too, and does not wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_second_stream = False

    @contextmanager
    def beside(self, _: None) -> Iterator[None]:
        """Stands in for `streams.beside`."""
        self.on_second_stream = True
        yield
        self.on_second_stream = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on = {each.device.type for each in given}
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            waits = not ((kwargs or {}).get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            crosses = len(on | {result.device.type}) > 1
            assert not (crosses and waits), "the host waits for a copy"
            assert not (crosses and self.on_second_stream)
            assert on != {"cuda"} or result.is_cuda, "the host reads"
        else:
            assert len(on) <= 1, f"{name} of {on}"
        return result


compiled: set[object] = set()
"""What a GPU would have compiled code for."""


def looked_at(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Stands in for `launch`."""
    assert {each.device for each in (*arguments, *constants.values()) if isinstance(each, Tensor)} == {GPU}
    kinds = tuple(map(kind_of, kernel.params, arguments))
    compiled.add((kernel.__name__, kinds, tuple(sorted(constants.items(), key=str))))


def kind_of(parameter: Any, argument: Any) -> object:
    """What Triton makes code of its own for: addresses and numbers that are multiples of 16, and the number 1."""
    if isinstance(argument, Tensor):
        odd = argument.storage_offset() * argument.itemsize % 16 > 0
        return argument.dtype, odd and not parameter.do_not_specialize_on_alignment
    if isinstance(argument, int):
        return argument < 1 << 31, not parameter.do_not_specialize and (argument == 1, argument % 16 == 0)
    return type(argument)


def really(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function that fills a tensor on the host have a real one."""

    def call(*arguments: Any) -> Tensor:
        with unset_fake_temporarily():
            return function(*arguments)

    return call


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Wait]]:
    """What the host waited for: it is told zeros."""
    done: list[Wait] = []

    def on_host(values: Tensor, wait: Wait) -> list[float]:
        assert values.device == GPU
        done.append(wait)
        return [0.0] * values.numel()

    def tensor_on_host(values: Tensor, wait: Wait) -> Tensor:
        assert values.device == GPU
        done.append(wait)
        return torch.zeros(values.shape, dtype=values.dtype)

    monkeypatch.setattr(devices, "on_host", on_host)
    monkeypatch.setattr(devices, "tensor_on_host", tensor_on_host)
    monkeypatch.setattr(inputs, "lay_out", really(inputs.lay_out))
    monkeypatch.setattr(TensorFile, "read", really(TensorFile.read))
    monkeypatch.setattr(weights, "is_finite", lambda _: True)
    for module in (attention, norms, products, routing, tensor):
        monkeypatch.setattr(module, "launch", looked_at)
    monkeypatch.setattr(rank, "second_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (FREE, FREE))
    # Else fake tensors look for a real GPU, where a test says how many there are.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(groups, "first_device", lambda: GPU)
    with ExitStack() as mode:

        def load_weights(*arguments: Any, **named: Any) -> None:
            """Real until now: a shape of it would not do for a tensor on the meta device."""
            mode.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            weights.load_weights(*arguments, **named)

        monkeypatch.setattr(runners, "load_weights", load_weights)
        yield done


def loaded(group: InferenceGroup) -> groups.Rank:
    return bring_up(plan_group(group), group, 0, on_loss=pytest.fail, on_stop=pytest.fail, progress=lambda _: None)


@pytest.fixture
def runner(make_group: MakeGroup, waited: list[Wait], request: pytest.FixtureRequest) -> Runner:
    """All layers, which have run steps as they came up; with the attention that a test's parameter says."""
    attention = {"maxLength": 64, **getattr(request, "param", {})}
    made = loaded(make_group(1, batching={"maxSequences": 1, "tokenBudget": 64}, attention=attention)[0]).runner
    assert set(waited) == {Wait.TOKENS}
    waited.clear()
    return made


def step(runner: Runner, parts: list[Part], x_TD: Tensor | None = None) -> Tensor:
    """Run one and choose its tokens."""
    with OnGpu() as mode, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "beside", mode.beside)
        x_TD = runner.run(parts, x_TD)
        told = runner.sample(parts, x_TD)
    assert x_TD.device == GPU
    assert x_TD.shape == (sum(len(part.tokens) for part in parts), 96)
    assert len(told) == sum(part.draws for part in parts if part.draw) + sum(
        len(part.known.tokens) for part in parts if part.known
    )
    return x_TD


WINDOW = {"window": 20, "sinks": 3}


@pytest.mark.parametrize(
    ("runner", "parts"),
    [
        ({}, SINGLES[:1]),
        ({}, SINGLES),
        (WINDOW, SINGLES),
        ({}, [replace(PROMPT, draw=GREEDY)]),
        (WINDOW, [*SINGLES, replace(PROMPT, draw=NUCLEUS, draws=4)]),
        ({}, [replace(SINGLES[0], draw=None), replace(PROMPT, draw=HOT)]),
    ],
    indirect=["runner"],
    ids=["single", "singles", "singles and window", "prompt", "all and window", "one of two"],
)
def test_a_step_waits_for_its_tokens_alone(runner: Runner, waited: list[Wait], parts: list[Part]) -> None:
    for _ in range(3):  # as it comes and is recorded, and twice from the recording
        step(runner, parts)
    assert waited == [Wait.TOKENS] * 3


def test_a_step_that_chooses_nothing_waits_for_nothing(runner: Runner, waited: list[Wait]) -> None:
    x_TD = step(runner, [PROMPT])
    assert waited == []
    with pytest.raises(DataDependentOutputException):  # as any number that is read anywhere
        float(x_TD[0, 0])


def test_all_that_a_step_may_need_is_compiled_and_recorded_before_the_first(
    make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.clear()
    batching = {"maxSequences": 5, "tokenBudget": 150}
    [group] = make_group(1, batching=batching)
    monkeypatch.setattr(graphs, "FEWEST_BLOCKS", 4)
    runner = loaded(group).runner
    compute = runner._compute
    assert isinstance(compute, rank.CudaRank)
    before, recorded = set(compiled), set(compute._graphs._recorded)
    for blocks in (1, 9):
        for count in (1, 3, 5):
            step(runner, [Part(0, (3,), (0,) * blocks, NUCLEUS)] * count)
    for tokens in (2, 7, 16, 33, 127, 131, 150):
        step(runner, [Part(0, (3,) * tokens, (0,) * 16, GREEDY, draws=min(tokens, 3))])
    assert compiled - before == set()
    assert set(compute._graphs._recorded) == recorded


def test_a_step_is_described_where_there_is_a_gpu(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    compute = runner._compute
    assert isinstance(compute, rank.CudaRank)
    extent = attention.Extent.of([PROMPT], compute._attention)
    with unset_fake_temporarily():
        numbers = inputs.describe([PROMPT], extent, compute._attention)
        assert inputs.Inputs(extent, numbers, None).rows.tolist() == [list(range(20)), list(PROMPT.tokens)]


def test_a_prompt_that_is_told_of_waits_for_that_too(runner: Runner, waited: list[Wait]) -> None:
    step(runner, [replace(PROMPT, known=Known(tuple(range(1, 20)), 2), draw=GREEDY)])
    assert sorted(waited, key=str) == [Wait.PROMPT, Wait.TOKENS]


def test_adapters_are_on_the_device_with_the_weights(runner: Runner, waited: list[Wait]) -> None:
    compute = runner._compute
    assert isinstance(compute, rank.CudaRank)
    shapes = targets(compute._config)
    compute.adapt([{name: Addition(torch.zeros(4, i), torch.zeros(o, 4), 2.0) for name, (o, i) in shapes.items()}])
    step(runner, [replace(SINGLES[0], adapter=0), replace(PROMPT, adapter=0), replace(SINGLES[1])])
    assert waited == [Wait.TOKENS]


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp8"])
def test_a_rank_of_a_pipeline_waits_for_what_it_hands_on(runner: Runner, waited: list[Wait], wire: Any) -> None:
    parts = [replace(part, draw=None) for part in SINGLES]
    for _ in range(3):
        with OnGpu():
            raw = devices.on_device(torch.zeros(len(parts) * {"fp32": 384, "bf16": 192, "fp8": 100}[wire]).byte(), GPU)
            x_TD = runner.run(parts, decode_states(raw, len(parts), 96, wire))
            assert encode_states(x_TD, wire).device.type == "cpu"
    assert waited == [Wait.STATES] * 3


@pytest.mark.parametrize(("kept", "dtype"), [("fp8", DTYPE), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_weights_and_cache_are_on_the_gpu_as_they_were_asked_for(
    make_group: MakeGroup, kept: str, dtype: torch.dtype
) -> None:
    made = loaded(
        make_group(1, batching={"maxSequences": 1, "tokenBudget": 64}, quantization={"weights": kept, "kvCache": kept})[
            0
        ]
    )
    compute = made.runner._compute
    assert isinstance(compute, rank.CudaRank)
    for layer in compute._layers.values():
        found = [*layer.qkv, layer.o, layer.mlp.w1, layer.mlp.w2, layer.mlp.w3]
        found += [] if layer.experts is None else [layer.experts.mlps.w1, layer.experts.mlps.w2, layer.experts.mlps.w3]
        assert {(matrices.values.dtype, matrices.values.device) for matrices in found} == {(dtype, GPU)}
        assert len(layer.qkv) == 1
    tensors = compute._cache.tensors(0)
    assert tensors["keys"].dtype == dtype
    assert {each.device for each in tensors.values()} == {GPU}


@pytest.mark.parametrize(("graphs", "left"), [(1, False), (2, True)])
def test_blocks_have_what_weights_and_steps_leave(
    make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch, graphs: int, left: bool
) -> None:
    [group] = make_group(1, batching={"maxSequences": 1, "tokenBudget": 64})
    plan = plan_group(group)
    steps = 64 * 4 * 8 * 96  # at the very least
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (graphs * groups.GRAPHS + steps, FREE))
    if left:
        assert loaded(group).blocks == plan.most_blocks
    else:
        with pytest.raises(RuntimeError, match="no memory is left for keys and values"):
            loaded(group)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 10, FREE))
    monkeypatch.setattr(runners, "load_weights", pytest.fail)
    with pytest.raises(Refused, match=r"weights .* take 706 KiB, and of its GPU's 80 GiB 1 KiB are free; write"):
        loaded(make_group(1)[0])


def test_tensor_ranks_without_a_gpu_each_are_refused(make_group: MakeGroup) -> None:
    with pytest.raises(Refused, match=r"parallelism.tensor is 2 and this pod has 0 GPUs: a tensor rank takes one"):
        loaded(make_group(1, parallelism={"pipeline": 1, "tensor": 2})[0])


class AloneOfTwo:
    """Stands in for the first of two tensor ranks: nobody else is there."""

    def __init__(self, group: InferenceGroup, pod: int, share: TensorSlice, device: torch.device, _: object) -> None:
        self.share = share
        self.add = tensor.Sums(share.ranks)
        self.least = int
        self.told: list[int] = []
        self.agree = self.told.append

    def begin(self, parts: list[Part], x_TD: Tensor | None) -> None:
        self.told.append(len(parts))


@pytest.mark.parametrize(("whole_experts", "at_once"), [(False, 0), (True, 1 << 20)])
def test_a_tensor_rank_waits_for_its_tokens_alone(
    make_group: MakeGroup,
    tokenizer: Tokenizer,
    tmp_path: Path,
    waited: list[Wait],
    monkeypatch: pytest.MonkeyPatch,
    *,
    whole_experts: bool,
    at_once: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(team, "Leader", AloneOfTwo)
    monkeypatch.setattr(tensor, "_gather", lambda into_X, x_X: into_X.copy_(x_X.repeat(len(into_X) // len(x_X))))
    monkeypatch.setattr(tensor.dist, "all_to_all_single", lambda into_X, x_X: into_X.copy_(x_X))
    monkeypatch.setattr(tensor, "AT_ONCE", at_once)
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 74}
    write_model(tmp_path / "even", tokenizer, vocab_size=200, **sizes)
    options = {"name": "native", "options": {"enable_expert_parallel": whole_experts}}
    batching = {"maxSequences": 1, "tokenBudget": 64}
    [group] = make_group(1, batching=batching, parallelism={"tensor": 2}, engine=options)
    made = loaded(group.model_copy(update={"model_folder": str(tmp_path / "even")}))
    compute = made.runner._compute
    assert isinstance(compute, rank.CudaRank)
    assert compute._cache.tensors(0)["keys"].shape[0] == 1
    experts = next(layer.experts for layer in compute._layers.values() if layer.experts is not None)
    count = ArcticConfig.from_folder(tmp_path / "even").num_local_experts
    assert experts.mlps.w1.values.shape == ((count // 2, 74, 96) if whole_experts else (count, 37, 96))
    waited.clear()
    for _ in range(2):
        step(made.runner, SINGLES)
    step(made.runner, [*SINGLES, replace(PROMPT, draw=GREEDY)])
    assert waited == [Wait.TOKENS] * 3
    assert made.runner._team.told[-3:] == [4, 4, 5]


@pytest.mark.parametrize("at_once", [True, False])
def test_rows_of_a_large_step_are_rounded_without_waiting(
    make_group: MakeGroup,
    tokenizer: Tokenizer,
    tmp_path: Path,
    waited: list[Wait],
    monkeypatch: pytest.MonkeyPatch,
    *,
    at_once: bool,
) -> None:
    products_of: list[str] = []
    for name in ("product_of_rounded", "groups_of_rounded"):
        multiply = getattr(rounding, name)

        def noted(*arguments: Any, name: str = name, multiply: Callable[..., Tensor] = multiply, **how: Any) -> Tensor:
            products_of.append(name)
            return multiply(*arguments, **how)

        monkeypatch.setattr(rounding, name, noted)
    monkeypatch.setattr(rounding, "launch", looked_at)
    monkeypatch.setattr(rounded, "at_once", lambda _: at_once)
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 80}
    write_model(tmp_path / "even", tokenizer, vocab_size=200, **sizes)
    options = {"name": "native", "options": {"large_step_format": "fp8"}}
    batching = {"maxSequences": 1, "tokenBudget": 16}
    [group] = make_group(1, batching=batching, attention={"maxLength": 64}, engine=options)
    made = loaded(group.model_copy(update={"model_folder": str(tmp_path / "even")}))
    waited.clear()
    assert products_of == []
    step(made.runner, [replace(PROMPT, draw=GREEDY)] * (rounding.LEAST_ROWS // 20 + 1))
    hybrids = made.runner._compute._config.expert_layers
    layers = made.runner._compute._config.num_hidden_layers
    assert products_of.count("product_of_rounded") == 5 * layers
    assert products_of.count("groups_of_rounded") == 3 * hybrids * at_once
    assert hybrids
    assert waited == [Wait.TOKENS]


@pytest.mark.processes
def test_where_there_is_no_gpu_nothing_for_one_is_imported() -> None:
    """Triton alone takes a second of a start."""
    code = """
import sys
from arctic_model.devices import first_device
from arctic_workers.inference.engines.native import room
if first_device().type == "cpu":
    print([name for name in sys.modules if name.partition(".")[0] == "triton" or ".native.cuda" in name])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout in ("[]\n", "")
