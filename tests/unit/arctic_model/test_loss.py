import pytest
import torch
from torch import Tensor
from torch.nn import functional

from arctic_model import cost, loss
from arctic_model.loss import loss_sum, token_losses

TOKENS, VOCABULARY, HIDDEN = 300, 70, 16


@pytest.fixture(autouse=True)
def several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 tokens in three pieces, the last of them short."""
    monkeypatch.setitem(cost._PIECE, "cpu", 1)


@pytest.fixture(params=["cpu", "gpu"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the gradients as on a CPU, or as on a GPU."""
    if request.param == "gpu":
        monkeypatch.setattr(loss, "_pieces_of_cpu", loss._pieces_of_gpu)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    lm_head = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return x, lm_head, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def mean_loss(x: Tensor, lm_head: Tensor, labels: Tensor) -> Tensor:
    return loss_sum(x, lm_head, labels, torch.ones(len(labels))) / len(labels)


def plain(x: Tensor, lm_head: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(x, lm_head).float(), labels, reduction="none")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_are_those_of_the_plain_one(dtype: torch.dtype, within: float) -> None:
    got, expected = inputs(dtype), inputs(dtype)
    loss = mean_loss(*got)
    torch.testing.assert_close(loss, plain(*expected).mean(), rtol=1e-6, atol=0)
    (3 * loss).backward()
    (3 * plain(*expected).mean()).backward()
    for mine, theirs in zip(got[:2], expected[:2], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == dtype
        largest = float(theirs.grad.abs().max())
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=within, atol=within * largest)


@pytest.mark.usefixtures("way")
def test_weighted_tokens_count_by_their_weights_and_those_without_any_not_at_all() -> None:
    got, expected = inputs(torch.float32), inputs(torch.float32)
    weights = torch.linspace(0, 0.1, TOKENS)
    weights[100:250] = 0.0
    loss, reference = loss_sum(*got, weights), (plain(*expected) * weights).sum()
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    loss.backward()
    reference.backward()
    assert got[0].grad is not None
    assert not got[0].grad[100:250].any()
    torch.testing.assert_close(got[0].grad, expected[0].grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got[1].grad, expected[1].grad, rtol=1e-5, atol=1e-6)


def test_what_is_only_looked_at_has_the_same_loss() -> None:
    x, lm_head, labels = inputs(torch.float32)
    torch.testing.assert_close(token_losses(x, lm_head, labels), plain(x, lm_head, labels).detach())
    with torch.no_grad():
        torch.testing.assert_close(mean_loss(x, lm_head, labels), plain(x, lm_head, labels).mean())


def test_an_improbable_label_has_a_finite_loss() -> None:
    x, lm_head = torch.full((1, 1), 400.0, requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = mean_loss(x, lm_head, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 800.0
    assert x.grad is not None
    assert x.grad.item() == 2.0


def test_no_piece_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    softmax = torch.softmax

    def noted(logits: Tensor, *arguments: object, **named: object) -> Tensor:
        sizes.append(logits.shape[0])
        return softmax(logits, *arguments, **named)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "softmax", noted)
    mean_loss(*inputs(torch.float32))
    assert sizes == [128, 128, 44]
