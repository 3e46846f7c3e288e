"""What the benchmark of a GPU plans, counts and keeps; that needs no GPU."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from arctic_api.training import Optimizer
from arctic_model.config import ArcticConfig
from arctic_model.fp8 import Fp8Experts
from arctic_model.initialization import init_weights, initial_matrix
from arctic_model.model import ArcticModel
from arctic_model.moe import Experts, MoE
from arctic_model.planning.devices import DEVICES
from arctic_model.planning.serving import Serving, plan_serving
from arctic_workers.inference.engines.native.step import Part
from benchmarks import gpu
from benchmarks.form import last_line
from benchmarks.gpu import Measuring, OutOfTime, at_most, ended_by, run_parts
from benchmarks.on_gpu import ahead, ceilings, measuring, prefill
from benchmarks.on_gpu.layers import BLOCK, fill_weights, prompts, rows_by_expert, shape, singles
from benchmarks.on_gpu.peer import GroupedExperts, Peer
from benchmarks.on_gpu.sizes import cache_bytes, fitting, layer_bytes, projected, touched_bytes
from benchmarks.on_gpu.training import CASE, drawn_on, spec_of

LARGE = ArcticConfig.preset("arctic")
TINY = ArcticConfig.preset("arctic-tiny").replace(num_hidden_layers=2, num_local_experts=4, vocab_size=64)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30


def test_as_many_whole_layers_are_measured_as_fit() -> None:
    fit = fitting(LARGE, 140 * GIB, 64, 2048)
    assert fit.config.num_local_experts == 128
    a_layer = layer_bytes(LARGE) + cache_bytes(LARGE, 64, 2048)
    assert fit.bytes == fit.config.num_hidden_layers * a_layer <= 0.88 * 140 * GIB < fit.bytes + a_layer


def test_of_a_layer_that_does_not_fit_as_many_experts_are_measured_as_do() -> None:
    fit = fitting(LARGE, 10 * GIB, 1, 2048)
    assert fit.config.num_hidden_layers == 1
    one_more = fit.config.replace(num_local_experts=fit.config.num_local_experts + 1)
    kept = cache_bytes(LARGE, 1, 2048)
    assert fit.bytes == layer_bytes(fit.config) + kept <= 0.88 * 10 * GIB < layer_bytes(one_more) + kept


def test_no_more_layers_are_measured_than_the_model_has() -> None:
    assert fitting(TINY, GIB, 1, 64).config.num_hidden_layers == TINY.num_hidden_layers


def test_a_card_without_room_for_a_tokens_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.1 GiB are free: not one layer with 2 experts fits"):
        fitting(LARGE, GIB // 10, 1, 2048)


def test_a_step_reads_what_is_dense_the_experts_that_it_touches_and_its_own_keys_and_values() -> None:
    hidden, inner = LARGE.hidden_size, LARGE.intermediate_size
    attention = 2 * hidden * (hidden + 1024) + 4 * (2 * hidden + 2 * 1024)
    residual = 3 * hidden**2 + 4 * 3 * hidden
    router_and_norms = 4 * (128 * hidden + 3 * hidden)
    expert = 3 * hidden * inner + 4 * (2 * inner + hidden)
    cache = 16 * 2048 * 2 * 8 * 128 * 2
    read = touched_bytes(LARGE, 5, 16, 2048)
    assert read == pytest.approx(attention + residual + router_and_norms + 5 * expert + cache, rel=1e-4)


def test_nodes_of_cards_decode_as_fast_as_they_read_where_no_line_is_known() -> None:
    one = projected(LARGE, "A card", 4e12, 1e18, nodes=2, per_node=8, length=2048)
    serving = Serving(LARGE, tensor=8, pipeline=2)
    limit = plan_serving(serving, DEVICES["h200"]).tokens_per_second_limit(2048)
    assert limit is not None
    # What goes between the two nodes is a row.
    assert one == pytest.approx(limit * 4 / 4.8, rel=1e-3)
    assert projected(LARGE, "NVIDIA H200", 4e12, 1e18, nodes=2, per_node=8, length=2048) < one


def test_a_device_is_busy_while_anything_runs_on_it() -> None:
    assert measuring.busy_share([(0, 4), (1, 2), (3, 5), (9, 10)]) == 0.6
    assert measuring.busy_share([]) == 0.0


def test_a_call_is_repeated_until_a_sample_lasts_and_its_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], [0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> None:
        calls[0] += 1
        now[0] += 1.0 if calls[0] % 100 == 0 else 1e-4

    assert measuring.seconds(call, CPU, budget=0.03) == pytest.approx(1e-4)
    assert calls[0] == 3 + 1 + 15 * 20


def test_what_was_profiled_is_as_fast_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str | None] = []

    class Profile(nullcontext["Profile"]):
        def __init__(self, **_: object) -> None:
            super().__init__(self)

        def __exit__(self, *_: object) -> None:
            left.append(os.environ.get("TEARDOWN_CUPTI"))

        def events(self) -> list[object]:
            return []

    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert measuring.kernels_of(lambda: None, GPU) == []
    assert left == ["1"]


def test_rows_of_tiles_are_counted_by_expert() -> None:
    table_M3 = torch.tensor([[2, 0, 16], [2, 16, 3], [0, 19, 1], [-1, 7, 0]], dtype=torch.int32)
    assert rows_by_expert(table_M3, 4).tolist() == [1, 0, 19, 0]


def test_random_weights_are_finite_and_neither_routers_nor_norms_are_rounded() -> None:
    model = shape(TINY)
    fill_weights(model, CPU)
    experts = model.layers[0].block_sparse_moe.get_parameter("experts.w1")
    assert experts.dtype == torch.float8_e4m3fn
    values = experts.float()
    assert values.isfinite().all()
    assert values.abs().max() < 2
    assert min((values < 0).float().mean(), (values > 0).float().mean()) > 0.4
    assert model.layers[0].block_sparse_moe.get_parameter("router.gate.weight").dtype == torch.float32
    assert (model.layers[0].input_layernorm.weight == 1).all()
    assert all((scale > 0).all() for scale in model.buffers())


@pytest.mark.parametrize(("parts", "tokens"), [(singles(3, 40), 3), (prompts(3, 40), 120)])
def test_steps_have_blocks_of_their_own_and_leave_the_one_that_stands_for_none(parts: list[Part], tokens: int) -> None:
    blocks = [block for part in parts for block in part.blocks]
    assert len(blocks) == len(set(blocks)) == 3 * -(-40 // BLOCK)
    assert min(blocks) == 1
    assert max(blocks) == len(blocks)
    assert {part.end for part in parts} == {40}
    assert sum(len(part.tokens) for part in parts) == tokens


def test_the_peers_experts_are_the_models() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, grouped = (kind(4, 32, 48).bfloat16().requires_grad_(False) for kind in (Experts, GroupedExperts))
    for one, other in zip(plain.parameters(), grouped.parameters(), strict=True):
        one.normal_(std=one.shape[-1] ** -0.5, generator=generator)
        other.copy_(one)
    x_RD = torch.randn(20, 32, generator=generator).bfloat16()
    counts_E = torch.tensor([7, 0, 12, 1])
    torch.testing.assert_close(grouped(x_RD, counts_E), plain(x_RD, counts_E), rtol=2e-2, atol=2e-2)


def test_the_peer_computes_what_the_model_does_in_one_graph_and_learns() -> None:
    tokens_BT = torch.randint(TINY.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    whole = partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)
    peer = Peer(TINY, tokens_BT, Optimizer(), 1e-2, whole)
    assert isinstance(peer.model.get_submodule("model.layers.0.block_sparse_moe.experts"), GroupedExperts)
    model = ArcticModel(TINY).requires_grad_(False)
    init_weights(model, 0)
    logits_BTV, balance = model.forward_with_loss(tokens_BT[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()) + balance
    losses = [float(peer.step()) for _ in range(4)]
    assert losses[0] == pytest.approx(expected.item(), rel=1e-2)
    assert losses[-1] < losses[0] - 0.5
    assert all(weight.dtype == torch.bfloat16 for weight in peer.model.parameters())


def test_the_weights_that_are_trained_are_drawn_on_the_card_as_widely_as_a_models() -> None:
    with torch.device("meta"):
        model = ArcticModel(TINY)
    with FakeTensorMode(allow_non_fake_inputs=True), drawn_on(GPU):
        drawn = initial_matrix(TINY, "model.layers.0.self_attn.q_proj.weight", (8, 8), 0)
        init_weights(model, 0, device=GPU)
    assert drawn.device == GPU
    assert {weight.device for weight in model.parameters()} == {GPU}
    with drawn_on(CPU):
        spread = initial_matrix(TINY, "model.layers.0.self_attn.q_proj.weight", (64, 64), 0).std()
    assert float(spread) == pytest.approx(TINY.initializer_range, rel=0.1)


def test_the_trainings_manifest_asks_for_one_micro_batch_of_the_whole_step() -> None:
    spec = spec_of(CASE, "fp8")
    assert spec.precision == "fp8"
    assert CASE.tokens == spec.batch.tokens_per_step == spec.batch.micro_batch_size * 2048 == 16384


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is called, and takes a second."""

    def seconds(call: Callable[[], object], device: torch.device, budget: float = 1.0) -> float:
        call()
        return 1.0

    for module in (ceilings, prefill):
        monkeypatch.setattr(module, "seconds", seconds)


@pytest.mark.usefixtures("once")
def test_ceilings_are_measured_on_the_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode():
        card = ceilings.measured(GPU)
    assert (card.copy, card.read) == (2 * 2**33, 2**33)
    assert card.bf16 == card.fp8 == 2 * 16384 * 8192 * 8192


@pytest.mark.usefixtures("once")
def test_torchs_products_have_the_shapes_of_a_layer() -> None:
    model = shape(LARGE.replace(num_hidden_layers=1))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_weights(model, GPU)
        experts = cast("Fp8Experts", cast("MoE", model.layers[0].block_sparse_moe).experts)
        counts_E = torch.ones(128, dtype=torch.int64, device=GPU)
        shapes = [tuple(call().shape) for call in prefill.products(LARGE, experts, 1024, counts_E)]
    assert shapes == [(1024, 9216), *[(1024, 7168)] * 4, *[(2048, 4864)] * 2, (2048, 7168)]


def kept(run: Measuring) -> tuple[list[Mapping[str, float]], Callable[[], None]]:
    """What figures there were each time that they were kept, and how."""
    lines: list[Mapping[str, float]] = []
    return lines, lambda: lines.append(dict(run.found))


def test_a_run_that_hangs_is_cut_with_what_it_has_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: cut.set())
    with ended_by(0.01, lambda: '{"read_tb_s": 4.5}'):
        assert cut.wait(20)
    assert capsys.readouterr().out.splitlines()[-1] == '{"read_tb_s": 4.5}'


def test_a_run_that_ends_in_time_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: cut.set())
    with ended_by(0.2, lambda: ""):
        pass
    assert not cut.wait(0.4)


def test_a_part_that_fails_says_why_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(run: Measuring) -> dict[str, float]:
        raise ValueError("no such unit\nand more")

    parts = (
        gpu.Part("first", 9, lambda run: {"one": 1.23456}),
        gpu.Part("second", 9, fails),
        gpu.Part("third", 9, lambda run: {"two": run.found["one"] + 1}),
        gpu.Part("fourth", 9, lambda run: {"three": run.found["missing"]}),
    )
    run = Measuring(CPU)
    lines, keep = kept(run)
    run_parts(run, parts, keep)
    assert run.found == {"one": 1.23456, "two": 2.23456}
    assert lines == [{"one": 1.23456}, {"one": 1.23456}, run.found, run.found]
    said = capsys.readouterr()
    assert said.out.splitlines() == ["first: one 1.235 (0 s)", "third: two 2.235 (0 s)"]
    assert "second: failed after 0 s: ValueError: no such unit\n" in said.err
    assert "fourth: failed after 0 s: KeyError: 'missing'" in said.err


def spin() -> None:
    while True:
        pass


def test_a_part_has_its_time_and_no_more() -> None:
    with pytest.raises(OutOfTime, match="it took more than 0 s"), at_most(0.05):
        spin()
    with at_most(0.01):
        pass
    time.sleep(0.02)  # nothing rings any more


def test_no_part_begins_when_the_whole_time_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def long(run: Measuring) -> dict[str, float]:
        now[0] += 480
        return {"one": 1.0}

    run = Measuring(CPU)
    run_parts(run, (gpu.Part("long", 600, long), gpu.Part("late", 9, lambda run: {"two": 2.0})), lambda: None)
    assert run.found == {"one": 1.0}
    assert "late: failed after 0 s: OutOfTime: no time is left of the whole" in capsys.readouterr().err


def test_all_parts_fit_into_the_time_but_for_what_an_early_one_leaves() -> None:
    assert sum(part.seconds for part in gpu.PARTS) < 60 * gpu.MINUTES * 1.2


def test_figures_so_far_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks" / "gpu.json"
    for figures in ({"read_tb_s": 4.45}, {"read_tb_s": 4.45, "train_tflops": 400.0}):
        gpu.write(last_line(figures, "NVIDIA H200"), path)
        assert json.loads(path.read_text()) == {"card": "NVIDIA H200", **figures}
    assert list(path.parent.iterdir()) == [path]


def test_without_a_gpu_it_says_so_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ahead, "report", lambda: print("a table"))
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "there is no GPU here" in said.err
    assert said.out == "a table\n"
