"""The loss of predicting tokens, without ever holding the logits of all of them.

Logits take vocabulary times tokens, more than anything else of a step. They are made of a piece of the tokens at a
time, and where gradients are wanted, these are made at once, while the piece is there: the backward pass only scales
them (the method of Liger Kernel, Hsu et al. 2024, arXiv 2410.10989, and of torchtitan). Shapes are named by the legend
of `arctic_model.layers`; C are the tokens of a piece.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from arctic_model.cost import tokens_of_a_piece
from arctic_model.regions import region


def token_losses(x_SD: Tensor, lm_head_VD: Tensor, labels_S: Tensor) -> Tensor:
    """Return the cross-entropy of each token's label, in nats, fp32 [S]; gives no gradients."""
    with torch.no_grad():
        return torch.cat([losses_C for _, losses_C, _ in _pieces(x_SD, lm_head_VD, labels_S)])


def loss_sum(
    x_SD: Tensor, lm_head_VD: Tensor, labels_S: Tensor, weights_S: Tensor, losses_S: Tensor | None = None
) -> Tensor:
    """Return the cross-entropies of the tokens' labels, in nats, times `weights_S` (fp32), summed: an fp32 scalar.

    Each of them, times its weight, is left in `losses_S` (fp32) besides, where gradients are wanted.

    Equals `(cross_entropy(linear(x_SD, lm_head_VD).float(), labels_S, reduction="none") * weights_S).sum()` up to the
    order of additions.
    """
    if not torch.is_grad_enabled():
        return (token_losses(x_SD, lm_head_VD, labels_S) * weights_S).sum()
    return _loss_sum(x_SD, lm_head_VD, labels_S, weights_S, losses_S)


class _LossSum(torch.autograd.Function):
    """The weighted sum of losses, whose gradients are those that the forward pass has made."""

    @staticmethod
    def forward(
        ctx: Any,
        x_SD: Tensor,
        lm_head_VD: Tensor,
        labels_S: Tensor,
        weights_S: Tensor,
        losses_S: Tensor | None,
    ) -> Tensor:
        x_grad_SD = torch.empty_like(x_SD)
        # Summed over pieces in fp32 whatever the model's dtype; None where the matrix is not trained.
        lm_head_grad_VD = torch.empty_like(lm_head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=x_SD.device)
        make = _pieces_of_gpu if x_SD.device.type == "cuda" else _pieces_of_cpu
        made = x_grad_SD, lm_head_grad_VD
        for piece, losses_C in make(x_SD, lm_head_VD, labels_S, weights_S, *made):
            total += losses_C.sum()
            if losses_S is not None:
                losses_S[piece] = losses_C
        ctx.made = x_grad_SD, lm_head_grad_VD
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        # Scaled where they are, and given away: the matrix's is among the largest tensors of a step.
        x_grad_SD, lm_head_grad_VD = ctx.made
        del ctx.made
        lm_head_grad_VD = None if lm_head_grad_VD is None else lm_head_grad_VD.mul_(gradient).to(x_grad_SD.dtype)
        return x_grad_SD.mul_(gradient), lm_head_grad_VD, None, None, None


_loss_sum = cast("Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]", _LossSum.apply)


def _pieces_of_cpu(
    x_SD: Tensor,
    lm_head_VD: Tensor,
    labels_S: Tensor,
    weights_S: Tensor,
    x_grad_SD: Tensor,
    lm_head_grad_VD: Tensor | None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield pieces of the tokens with their weighted losses [C], their gradients made."""
    for piece, losses_C, probabilities_CV in _pieces(x_SD, lm_head_VD, labels_S):
        labels_C, weights_C = labels_S[piece], weights_S[piece]
        yield piece, losses_C.mul_(weights_C)
        # The gradient of the logits: probabilities, less 1 at the label.
        less_C1 = probabilities_CV.new_full((len(labels_C), 1), -1.0)
        grad_CV = probabilities_CV.scatter_add_(1, labels_C[:, None], less_C1).to(x_SD.dtype)
        torch.mm(grad_CV, lm_head_VD, out=x_grad_SD[piece]).mul_(weights_C[:, None])
        if lm_head_grad_VD is not None:
            weighted_CD = (x_SD[piece] * weights_C[:, None]).to(x_SD.dtype)
            _add_product(lm_head_grad_VD, grad_CV.t(), weighted_CD, first=piece.start == 0)


def _pieces_of_gpu(
    x_SD: Tensor,
    lm_head_VD: Tensor,
    labels_S: Tensor,
    weights_S: Tensor,
    x_grad_SD: Tensor,
    lm_head_grad_VD: Tensor | None,
) -> Iterator[tuple[slice, Tensor]]:
    """The same; between the products logits are read twice, and their gradient written in their place."""
    each = tokens_of_a_piece(x_SD.shape[0], lm_head_VD.shape[0], x_SD.device.type)
    logits = x_SD.new_empty(each, lm_head_VD.shape[0])
    for start in range(0, x_SD.shape[0], each):
        piece = slice(start, min(start + each, x_SD.shape[0]))
        logits_CV = logits[: piece.stop - start]
        torch.mm(x_SD[piece], lm_head_VD.t(), out=logits_CV)
        yield piece, _to_gradient(logits_CV, labels_S[piece], weights_S[piece])
        torch.mm(logits_CV, lm_head_VD, out=x_grad_SD[piece])
        if lm_head_grad_VD is not None:
            _add_product(lm_head_grad_VD, logits_CV.t(), x_SD[piece], first=start == 0)


@region
def _to_gradient(logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor) -> Tensor:
    """Turn logits, where they are, into the gradients of the weighted losses, and return these, fp32 [C]."""
    wide_CV, labels_C1 = logits_CV.float(), labels_C[:, None]
    sums_C = wide_CV.logsumexp(1)
    losses_C = (sums_C - logits_CV.gather(1, labels_C1)[:, 0].float()) * weights_C
    less_CV = (torch.arange(logits_CV.shape[1], device=logits_CV.device) == labels_C1).float()
    logits_CV.copy_(((wide_CV - sums_C[:, None]).exp() - less_CV) * weights_C[:, None])
    return losses_C


def _pieces(x_SD: Tensor, lm_head_VD: Tensor, labels_S: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield pieces of the tokens, with their losses, fp32 [C], and probabilities, fp32 [C, V].

    The next piece overwrites the probabilities. Of each logit the exponential is taken once: what they were divided by
    is found again from the greatest of them, which is never near 0.
    """
    tokens, vocabulary = x_SD.shape[0], lm_head_VD.shape[0]
    each = tokens_of_a_piece(tokens, vocabulary, x_SD.device.type)
    logits = x_SD.new_empty(each, vocabulary)
    probabilities = x_SD.new_empty(each, vocabulary, dtype=torch.float32)
    for start in range(0, tokens, each):
        piece = slice(start, min(start + each, tokens))
        logits_CV, probabilities_CV = logits[: piece.stop - start], probabilities[: piece.stop - start]
        torch.mm(x_SD[piece], lm_head_VD.t(), out=logits_CV)
        torch.softmax(logits_CV, 1, dtype=torch.float32, out=probabilities_CV)
        chosen_C = logits_CV.gather(1, labels_S[piece][:, None])[:, 0].float()
        losses_C = logits_CV.amax(1).float() - probabilities_CV.amax(1).log_() - chosen_C
        yield piece, losses_C, probabilities_CV


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add the product of two matrices to `total`, which is fp32 whatever they are, and undefined before the `first`."""
    if left.dtype != total.dtype:
        product = left @ right
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(left, right, out=total)
    else:
        total.addmm_(left, right)
