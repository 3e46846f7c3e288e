"""Products in FP8 as CPUs do them, against fp32 and against a plain reference that rounds and widens.

And their walk on a GPU, without one. `tests/kernels` holds the kernels that round there to what CPUs do.
"""

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from arctic_model import devices, rounded
from arctic_model.config import PRESETS, ArcticConfig
from arctic_model.devices import Wait
from arctic_workers.training.engine import LossModule, Ranks, build_model, fill_model, named_tensors, shape_model
from arctic_workers.training.experts import products as passes
from arctic_workers.training.experts.grouped import Groups
from arctic_workers.training.experts.products import Backlog, WeightGradients, Weights
from arctic_workers.training.fp8 import model as fp8_model
from arctic_workers.training.fp8 import products, rounding
from arctic_workers.training.fp8.experts import RoundedProduct
from arctic_workers.training.fp8.linear import RoundedLinear, _Product, last_input
from arctic_workers.training.fp8.model import check_fp8
from arctic_workers.training.fp8.rounding import BLOCK, Last, Layout, Rounded, by_both, by_columns, by_rows, padded_ends

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RANKS = Ranks(0, 1, 0, CPU)
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=64, num_hidden_layers=2, moe_layer_frequency=2, num_local_experts=4, hidden_size=64, intermediate_size=48
)
COUNTS = [5, 0, 40]
ERROR = 0.05
"""Of a sum of products, relative to its norm: each factor is off by a sixteenth at most, and by 2.6% in the mean."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def reference(x: Tensor) -> Tensor:
    """Round a matrix by its rows to e4m3, and widen it."""
    scale = torch.exp2(torch.floor(torch.log2(448 / x.double().abs().amax(-1, keepdim=True).clamp(min=2.0**-100))))
    return ((x.double() * scale).to(torch.float8_e4m3fn).double() / scale).float()


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_rounding_is_to_nearest_with_a_power_of_two_a_row() -> None:
    x_NK = torch.randn(50, 70) * torch.exp(8 * torch.randn(50, 1))
    rounded = by_rows(x_NK)
    assert torch.equal(rounded.widened(), reference(x_NK))
    assert torch.equal(rounded.scales.log2(), rounded.scales.log2().round())
    greatest_N = rounded.values.float().abs().amax(-1)
    assert ((greatest_N > 224 * 15 / 16) & (greatest_N <= 448)).all()


@pytest.mark.parametrize(
    ("magnitude", "scale"), [(448.0, 1.0), (448.1, 2.0), (224.0, 0.5), (1.0, 2.0**-8), (1.7500001, 2.0**-7)]
)
def test_what_is_greatest_in_a_row_comes_under_448_as_closely_as_a_power_of_two_can(
    magnitude: float, scale: float
) -> None:
    assert by_rows(torch.tensor([[0.1, -magnitude]])).scales.tolist() == [scale]


def test_a_row_of_nothing_is_nothing_and_one_that_is_not_finite_is_no_number() -> None:
    x_NK = torch.tensor([[0.0, 0.0], [torch.inf, 1.0], [1.0, torch.nan], [1e-38, 0.0]])
    for found in (by_rows(x_NK).widened(), by_columns(x_NK.t()).widened()):
        assert torch.equal(found.isnan(), torch.tensor([[False] * 2, [True] * 2, [True] * 2, [False] * 2]))
        assert not found[0].any()


def test_columns_are_the_rows_of_what_is_turned_round() -> None:
    x_ENK = torch.randn(3, 48, 37)
    stack = by_columns(x_ENK)
    for columns, x_NK in ((Rounded(*(part[1] for part in stack)), x_ENK[1]), (by_columns(x_ENK[2]), x_ENK[2])):
        assert columns.values.shape == (37, 48)
        assert torch.equal(columns.widened(), by_rows(x_NK.t()).widened())


def test_both_are_padded_for_sums_over_any_number_of_rows() -> None:
    x_NK = torch.randn(37, 48)
    rows, columns = by_both(x_NK)
    assert torch.equal(rows.widened(), by_rows(x_NK).widened())
    assert columns.values.shape == (48, 2 * BLOCK)
    assert torch.equal(columns.widened()[:, :37], by_columns(x_NK).widened())
    assert not columns.values[:, 37:].float().any()


def test_groups_are_padded_to_blocks_and_never_empty() -> None:
    ends_E = torch.tensor([5, 5, 5 + BLOCK, 6 + 2 * BLOCK], dtype=torch.int32)
    layout = Layout.of(ends_E, padded_ends(ends_E), 6 + 2 * BLOCK)
    assert layout.padded_E.tolist() == [BLOCK, 2 * BLOCK, 3 * BLOCK, 5 * BLOCK]
    assert layout.padded_E.dtype == torch.int32
    assert layout.width >= 5 * BLOCK


def linear() -> tuple[RoundedLinear, Tensor, Tensor]:
    """A layer that has done both passes, its input and its output."""
    layer = RoundedLinear(nn.Linear(64, 48, bias=False), last_input())
    x_BTD = torch.randn(3, 7, 64, requires_grad=True)
    return layer, x_BTD, layer(x_BTD)


def test_a_linear_layer_multiplies_what_a_plain_reference_rounds() -> None:
    layer, x_BTD, y_BTN = linear()
    y_grad_BTN = torch.randn_like(y_BTN)
    y_BTN.backward(y_grad_BTN)
    x_SD, y_grad_SN, w_ND = x_BTD.detach().flatten(0, 1), y_grad_BTN.flatten(0, 1), layer.weight.detach()
    assert x_BTD.grad is not None
    assert layer.weight.grad is not None
    for found, left, right in (
        (y_BTN.detach().flatten(0, 1), x_SD, w_ND),
        (x_BTD.grad.flatten(0, 1), y_grad_SN, w_ND.t()),
        (layer.weight.grad, y_grad_SN.t(), x_SD.t()),
    ):
        torch.testing.assert_close(found, reference(left) @ reference(right).t(), rtol=1e-5, atol=1e-5)
        assert 0.005 < off(found, left @ right.t()) < ERROR


def test_without_gradients_a_linear_layer_computes_the_same() -> None:
    layer, x_BTD, y_BTN = linear()
    with torch.no_grad():
        assert torch.equal(layer(x_BTD), y_BTN)


def test_an_input_is_rounded_once_for_all_that_multiply_it_and_again_when_it_changes() -> None:
    made: list[float] = []

    def make(x: Tensor) -> int:
        made.append(float(x))
        return len(made)

    last, x, other = Last(make), torch.ones(1), torch.zeros(1)
    for each in (x, x, other, x):
        last.of(each)
    x.add_(1)
    last.of(x)
    assert made == [1, 0, 1, 2]


def test_what_was_rounded_goes_with_what_it_was_made_of() -> None:
    last = Last(by_rows)
    x = torch.randn(2, 16)
    last.of(x)
    del x
    gc.collect()
    assert last._made is None


class Experts:
    """Passes over a few experts, in FP8."""

    def __init__(self, counts: list[int]) -> None:
        hidden, inner = 64, 48
        self.weights = Weights(
            *(torch.randn(len(counts), *shape) / 8 for shape in ((inner, hidden), (hidden, inner), (inner, hidden)))
        )
        self.x_PD, self.y_grad_PD = torch.randn(2, sum(counts), hidden).unbind()
        ends_E = torch.tensor(counts).cumsum(0, dtype=torch.int32)
        self.groups = Groups(ends_E, slice(0, len(counts)), RoundedProduct())

    def run(self) -> list[Tensor]:
        """Results, the gradient of the rows, and those of the weights."""
        y_PD, kept = passes.forward(self.x_PD, self.groups, self.weights)
        x_grad_PD, made = passes.backward(self.y_grad_PD, self.groups, self.weights, kept)
        gradients = WeightGradients(self.weights, Backlog())
        gradients.put_off(self.groups, kept, made)
        return [y_PD, x_grad_PD, *gradients.finish()]


def of_an_expert(x: Tensor, y_grad: Tensor, weights: Weights, q: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The same of one expert, whose operands `q` rounds."""

    def product(left: Tensor, right: Tensor) -> Tensor:
        return q(left) @ q(right).t()

    gate, up = product(x, weights.w1), product(x, weights.w3)
    gated = functional.silu(gate) * up
    gated_grad = product(y_grad, weights.w2.t())
    gate_grad = torch.ops.aten.silu_backward(gated_grad * up, gate)
    up_grad = gated_grad * functional.silu(gate)
    return [
        product(gated, weights.w2),
        product(gate_grad, weights.w1.t()) + product(up_grad, weights.w3.t()),
        *(product(left.t(), right.t()) for left, right in ((gate_grad, x), (y_grad, gated), (up_grad, x))),
    ]


def test_experts_multiply_what_a_plain_reference_rounds_each_by_itself() -> None:
    experts = Experts(COUNTS)
    y_PD, x_grad_PD, *gradients = experts.run()
    rows = zip(*(torch.split(part, COUNTS) for part in (y_PD, x_grad_PD, experts.x_PD, experts.y_grad_PD)), strict=True)
    for expert, (y, x_grad, x, y_grad) in enumerate(rows):
        found = [y, x_grad, *(gradient[expert] for gradient in gradients)]
        if not COUNTS[expert]:
            assert not any(part.any() for part in found)
            continue
        own = Weights(*(weight[expert] for weight in experts.weights))
        for mine, plain, exact in zip(
            found, of_an_expert(x, y_grad, own, reference), of_an_expert(x, y_grad, own, lambda part: part), strict=True
        ):
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)
            assert 0.005 < off(mine, exact) < 2 * ERROR  # what is multiplied has been multiplied before


def test_experts_without_any_row_have_no_gradient() -> None:
    y_PD, x_grad_PD, *gradients = Experts([0, 0]).run()
    assert y_PD.shape == x_grad_PD.shape == (0, 64)
    assert [gradient.shape for gradient in gradients] == [(2, 48, 64), (2, 64, 48), (2, 48, 64)]
    assert not any(gradient.any() for gradient in gradients)


def model(precision: Any, *, recompute: bool = False) -> LossModule:
    arctic = build_model(CONFIG, RANKS, 1, 0, None, None, precision)
    arctic.recompute(recompute)
    return LossModule(arctic)


def passes_of(module: LossModule) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of some tokens, and its gradients."""
    tokens_BT = torch.arange(2 * 33).view(2, 33) % CONFIG.vocab_size
    loss, balance = module(tokens_BT)
    (loss + balance).backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters()}
    return loss.detach(), {name: gradient for name, gradient in gradients.items() if gradient is not None}


def test_a_model_has_the_same_tensors_by_the_same_names() -> None:
    plain, rounded = named_tensors(model("bf16")), named_tensors(model("fp8"))
    assert list(plain) == list(rounded)
    for name, tensor in plain.items():
        assert torch.equal(tensor, rounded[name])
        assert tensor.dtype == rounded[name].dtype
    assert not list(model("fp8").buffers())
    assert model("bf16").state_dict().keys() == model("fp8").state_dict().keys()


def test_experts_and_big_matrices_are_multiplied_in_fp8_and_nothing_else() -> None:
    module = model("fp8")
    rounded = {name for name, part in module.named_modules() if isinstance(part, RoundedLinear)}
    dense, hybrid = (f"arctic.model.layers.{layer}" for layer in (0, 1))
    attention = {f"{layer}.self_attn.{name}_proj" for layer in (dense, hybrid) for name in "qkvo"}
    mlps = {
        f"{part}.w{index}" for part in (f"{dense}.block_sparse_moe.mlp", f"{hybrid}.residual_mlp") for index in "123"
    }
    assert rounded == attention | mlps
    assert isinstance(module.arctic.layers[1].block_sparse_moe.company.product, RoundedProduct)
    assert not any(isinstance(part, RoundedLinear) for part in model("bf16").modules())


def test_a_whole_model_comes_near_to_its_loss_and_gradients_in_full() -> None:
    (loss, gradients), (exact, exact_gradients) = passes_of(model("fp8")), passes_of(model("bf16"))
    assert 0 < abs(float(loss / exact) - 1) < 0.01
    assert gradients.keys() == exact_gradients.keys()
    for name, gradient in gradients.items():
        assert functional.cosine_similarity(gradient.flatten(), exact_gradients[name].flatten(), 0) > 0.9, name


def test_what_is_computed_again_in_the_backward_pass_has_the_same_bits() -> None:
    (loss, gradients), (again, again_gradients) = passes_of(model("fp8")), passes_of(model("fp8", recompute=True))
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, again_gradients[name]), name


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[Wait]:
    """What hosts wait for; kernels only look at where what they are given is."""
    done: list[Wait] = []

    def on_host(_: Tensor, wait: Wait) -> list[float]:
        done.append(wait)
        return [BLOCK, 2 * BLOCK, 3 * BLOCK]

    def launch(_: Any, grid: tuple[int, int], *arguments: Any, **__: Any) -> None:
        assert all(type(size) is int for size in grid)
        assert {argument.device for argument in arguments if isinstance(argument, Tensor)} == {GPU}

    monkeypatch.setattr(devices, "on_host", on_host)
    monkeypatch.setattr(rounding, "launch", launch)
    return done


@pytest.mark.parametrize("hopper", [True, False])
def test_on_a_gpu_all_products_are_launched_and_only_loops_wait(
    waited: list[Wait], monkeypatch: pytest.MonkeyPatch, hopper: bool
) -> None:
    for module in (products, rounded):
        monkeypatch.setattr(module, "at_once", lambda _: hopper)
    with FakeTensorMode():
        x_PD, y_grad_PF = (torch.empty(3 * BLOCK, size, dtype=torch.bfloat16, device=GPU) for size in (64, 48))
        w1_EFD = torch.empty(3, 48, 64, dtype=torch.bfloat16, device=GPU)
        ends_E = torch.empty(3, dtype=torch.int32, device=GPU)
        product = RoundedProduct()
        made = [
            (product.rows(x_PD, w1_EFD.mT, ends_E), (3 * BLOCK, 48)),
            (product.rows(y_grad_PF, w1_EFD, ends_E), (3 * BLOCK, 64)),
            (product.weight_gradient(y_grad_PF, x_PD, ends_E), (3, 48, 64)),
        ]
        for tensor, shape in made:
            assert (tensor.device, tensor.dtype, tensor.shape) == (GPU, torch.bfloat16, shape)
    assert waited == ([] if hopper else [Wait.EXPERT_ROWS] * 3)


def test_on_a_gpu_a_linear_layer_waits_for_nothing(waited: list[Wait]) -> None:
    with FakeTensorMode():
        x_SD, w_ND, y_grad_SN = (
            torch.empty(shape, dtype=torch.bfloat16, device=GPU) for shape in ((45, 64), (48, 64), (45, 48))
        )
        saved: list[Tensor] = []
        context = SimpleNamespace(save_for_backward=lambda *tensors: saved.extend(tensors), needs_input_grad=[True] * 2)
        y_SN = _Product.forward(context, x_SD, w_ND, *by_both(x_SD))
        context.saved_tensors = saved
        x_grad_SD, w_grad_ND, *_ = _Product.backward(context, y_grad_SN)
        for tensor, like in ((y_SN, y_grad_SN), (x_grad_SD, x_SD), (w_grad_ND, w_ND)):
            assert tensor is not None
            assert (tensor.device, tensor.dtype, tensor.shape) == (GPU, torch.bfloat16, like.shape)
    assert waited == []


def test_on_a_gpu_a_whole_model_waits_for_nothing_and_is_bf16_between_its_products(
    waited: list[Wait], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (products, rounded):
        monkeypatch.setattr(module, "at_once", lambda _: True)
    ranks = Ranks(0, 1, 0, GPU)
    module = LossModule(shape_model(CONFIG, ranks, 1, None, "fp8"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(module.arctic, ranks, 1, 0, None)
        assert {(weight.device, weight.dtype) for weight in module.parameters()} == {(GPU, torch.bfloat16)}
        loss, balance = module(torch.zeros(2, 33, dtype=torch.int64, device=GPU))
        assert loss.device == balance.device == GPU
    assert waited == []


def test_presets_have_sizes_that_fp8_takes() -> None:
    for config in PRESETS.values():
        check_fp8(config, CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 72, "num_attention_heads": 4, "num_key_value_heads": 4}, "hidden_size is 72, num_key_value"),
        ({"intermediate_size": 40}, "intermediate_size is 40"),
        ({"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 3}, "x head_dim is 24"),
    ],
)
def test_other_sizes_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=f"multiples of 16, and of this model .*{said}"):
        check_fp8(CONFIG.replace(**changes), CPU)


def test_an_image_in_which_no_kernel_can_be_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(fp8_model, "builds_kernels", lambda: False)
    with pytest.raises(ValueError, match="takes a C compiler"):
        check_fp8(CONFIG, GPU)


@pytest.mark.parametrize(("capability", "taken"), [((8, 0), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_a_gpu_that_does_not_multiply_fp8_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], taken: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(fp8_model, "builds_kernels", lambda: True)
    if taken:
        check_fp8(CONFIG, GPU)
        return
    with pytest.raises(ValueError, match=r"a NVIDIA A100 doesn't multiply: its compute capability is 8\.0"):
        check_fp8(CONFIG, GPU)
