"""The gated MLPs of many experts over rows that are sorted by expert, forward and backward, in pieces.

The backward pass comes apart: the gradient of the rows is what others wait for, those of the weights nobody does, so
they can be made whenever there is time. Shapes are named by the legend of `arctic_model.layers`; P are the rows.

Whose rows they are is told in one of two ways: by the count of each expert's, and then experts are run in a loop; or as
`Groups`, and then all are run at once.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from arctic_model.layers import gated
from arctic_model.regions import region
from arctic_workers.training.experts.grouped import Groups
from arctic_workers.training.experts.team import Job, share_out

Shares = list[int] | Groups
"""Rows of each expert, or which rows are whose."""


class Weights(NamedTuple):
    """Of the experts that a rank holds: w1 and w3 are [E, F, D], w2 is [E, D, F]; or their gradients."""

    w1: Tensor
    w2: Tensor
    w3: Tensor


class Forward(NamedTuple):
    """What the backward pass needs of a forward pass."""

    x_PD: Tensor
    gate_PF: Tensor
    up_PF: Tensor


def forward(x_PD: Tensor, shares: Shares, weights: Weights) -> tuple[Tensor, Forward]:
    """Run rows that are sorted by expert; returns [P, D] in the same order.

    A loop goes expert by expert, backward too: what is between products stays in the processor's caches, and no bit
    depends on whose rows are beside an expert's (the exponentials of what fills no vector are rounded otherwise).
    """
    if isinstance(shares, Groups):
        kept = enter(x_PD, shares, weights)
        return shares.rows(gated(kept.gate_PF, kept.up_PF), weights.w2.mT), kept
    kept = Forward(x_PD, *_empty_PF(x_PD, weights, 2))
    y_PD = torch.empty_like(x_PD)

    def run(transposed: Weights, x_pD: Tensor, gate_pF: Tensor, up_pF: Tensor, y_pD: Tensor) -> None:
        _enter(transposed, x_pD, gate_pF, up_pF)
        torch.mm(functional.silu(gate_pF).mul_(up_pF), transposed.w2, out=y_pD)

    _by_expert(run, shares, _transposed(weights), *kept, y_PD)
    return y_PD, kept


def enter(x_PD: Tensor, shares: Shares, weights: Weights) -> Forward:
    """Compute again what `forward` keeps: the same bits."""
    if isinstance(shares, Groups):
        return Forward(x_PD, shares.rows(x_PD, weights.w1.mT), shares.rows(x_PD, weights.w3.mT))
    kept = Forward(x_PD, *_empty_PF(x_PD, weights, 2))
    _by_expert(_enter, shares, _transposed(weights), *kept)
    return kept


def _enter(transposed: Weights, x_pD: Tensor, gate_pF: Tensor, up_pF: Tensor) -> None:
    torch.mm(x_pD, transposed.w1, out=gate_pF)
    torch.mm(x_pD, transposed.w3, out=up_pF)


def _transposed(weights: Weights) -> Weights:
    return Weights(*(weight.mT for weight in weights))


class Backward(NamedTuple):
    """Gradients of a pass, as far as those of the weights need them."""

    y_PD: Tensor
    gated_PF: Tensor
    """The input of w2, which is made anew."""
    gate_PF: Tensor
    up_PF: Tensor


def backward(y_grad_PD: Tensor, shares: Shares, weights: Weights, kept: Forward) -> tuple[Tensor, Backward]:
    """Return the gradient of the rows [P, D], and what `WeightGradients` takes."""
    if isinstance(shares, Groups):
        gated_grad_PF = shares.rows(y_grad_PD, weights.w2)
        made = Backward(y_grad_PD, *_back_through_gate(gated_grad_PF, kept.gate_PF, kept.up_PF))
        x_grad_PD = shares.rows(made.gate_PF, weights.w1)
        return x_grad_PD.add_(shares.rows(made.up_PF, weights.w3)), made
    made = Backward(y_grad_PD, *_empty_PF(y_grad_PD, weights, 3))
    x_grad_PD = torch.empty_like(y_grad_PD)

    def run(
        expert: Weights,
        gate_pF: Tensor,
        up_pF: Tensor,
        y_grad_pD: Tensor,
        gated_pF: Tensor,
        gate_grad_pF: Tensor,
        up_grad_pF: Tensor,
        x_grad_pD: Tensor,
    ) -> None:
        gated_grad_pF = torch.mm(y_grad_pD, expert.w2)
        activated_pF = functional.silu(gate_pF)
        torch.mul(activated_pF, up_pF, out=gated_pF)
        torch.mul(gated_grad_pF, activated_pF, out=up_grad_pF)
        torch.ops.aten.silu_backward.grad_input(gated_grad_pF.mul_(up_pF), gate_pF, grad_input=gate_grad_pF)
        torch.mm(gate_grad_pF, expert.w1, out=x_grad_pD)
        x_grad_pD.addmm_(up_grad_pF, expert.w3)

    _by_expert(run, shares, weights, kept.gate_PF, kept.up_PF, *made, x_grad_PD)
    return x_grad_PD, made


@region
def _back_through_gate(gated_grad_PF: Tensor, gate_PF: Tensor, up_PF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input of w2, which is made anew, and the gradients of both halves."""
    activated_PF = functional.silu(gate_PF)
    gate_grad_PF = torch.ops.aten.silu_backward(gated_grad_PF * up_PF, gate_PF)
    return activated_PF * up_PF, gate_grad_PF, gated_grad_PF * activated_PF


def _empty_PF(like_PD: Tensor, weights: Weights, count: int) -> list[Tensor]:  # noqa: N802 - the shape
    return [like_PD.new_empty(like_PD.shape[0], weights.w1.shape[1]) for _ in range(count)]


def _by_expert(run: Callable[..., None], counts: list[int], weights: Weights, *rows: Tensor) -> None:
    """Call `run` for each expert that has any rows, with its weights and its part of each of `rows`."""
    experts = zip(*(weight.unbind() for weight in weights), strict=True)
    parts = zip(*(torch.split(each, counts) for each in rows), strict=True)
    jobs = (
        Job(_flops(count, weights.w1), partial(run, Weights(*expert), *part))
        for count, expert, part in zip(counts, experts, parts, strict=True)
        if count
    )
    share_out(jobs, weights.w1.device)


def _flops(rows: int, weights: Tensor) -> int:
    """Return those of a product of so many rows with one of the stacked matrices."""
    return 2 * rows * weights[0].numel()


class Backlog:
    """Work that was put off until there is time, done in the order in which it came."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()

    def put_off(self, job: Callable[[], None]) -> None:
        """Take a job on."""
        self._jobs.append(job)

    def work(self) -> bool:
        """Do one job; whether there was one."""
        if not self._jobs:
            return False
        self._jobs.popleft()()
        return True

    def work_off(self) -> None:
        """Do all jobs."""
        while self.work():
            pass


class WeightGradients:
    """The gradients of a layer's experts, made piece by piece when there is time.

    An expert's rows may come in several pieces, which are added in the order in which they were given, so that no sum
    depends on when there was time.
    """

    def __init__(self, weights: Weights, backlog: Backlog) -> None:
        self._weights = weights
        self._backlog = backlog
        self._open = 0
        self._gradients: Weights | None = None
        self._begun: list[set[int]] = [set(), set(), set()]
        self._grouped: list[dict[int, Tensor]] = [{}, {}, {}]  # by the first expert of each group of them

    def put_off(self, shares: Shares, kept: Forward, made: Backward) -> None:
        """Take the products of a piece on."""
        for index, (left, right) in enumerate(
            ((made.gate_PF, kept.x_PD), (made.y_PD, made.gated_PF), (made.up_PF, kept.x_PD))
        ):
            self._open += 1
            self._backlog.put_off(partial(self._add, index, shares, left, right))

    def finish(self) -> Weights:
        """Return the gradients, once what was put off is done; an expert without any row has zeros."""
        while self._open:
            self._backlog.work()
        if any(self._grouped):
            return self._joined()
        # Given away: autograd would copy what somebody else still holds.
        gradients, self._gradients = self._made(), None
        for gradient, begun in zip(gradients, self._begun, strict=True):
            for expert in set(range(gradient.shape[0])) - begun:
                gradient[expert].zero_()
        return gradients

    def _joined(self) -> Weights:
        """Return what groups of experts have: all are of some group."""
        grouped, self._grouped = self._grouped, [{}, {}, {}]
        ordered = ([of[first] for first in sorted(of)] for of in grouped)
        return Weights(*(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in ordered))

    def _made(self) -> Weights:
        if self._gradients is None:
            self._gradients = Weights(*(torch.empty_like(weight) for weight in self._weights))
        return self._gradients

    def _add(self, index: int, shares: Shares, left_PM: Tensor, right_PN: Tensor) -> None:
        """Add each expert's left rows, transposed, times its right rows."""
        self._open -= 1
        if isinstance(shares, Groups):
            self._add_grouped(self._grouped[index], shares, left_PM, right_PN)
        else:
            self._add_by_expert(index, shares, left_PM, right_PN)

    def _add_grouped(self, made: dict[int, Tensor], groups: Groups, left_PM: Tensor, right_PN: Tensor) -> None:
        gradient = groups.weight_gradient(left_PM, right_PN)
        before = made.get(groups.experts.start)
        made[groups.experts.start] = gradient if before is None else before.add_(gradient)

    def _add_by_expert(self, index: int, counts: list[int], left_PM: Tensor, right_PN: Tensor) -> None:
        gradients, begun = self._made()[index], self._begun[index]

        def add(begun: bool, gradient: Tensor, left_Mp: Tensor, right_pN: Tensor) -> None:
            if begun:
                gradient.addmm_(left_Mp, right_pN)
            else:
                torch.mm(left_Mp, right_pN, out=gradient)

        lefts, rights = torch.split(left_PM.t(), counts, 1), torch.split(right_PN, counts)
        parts = zip(counts, gradients.unbind(), lefts, rights, strict=True)
        jobs = {
            expert: Job(_flops(count, gradients), partial(add, expert in begun, *part))
            for expert, (count, *part) in enumerate(parts)
            if count
        }
        share_out(jobs.values(), gradients.device)
        begun |= set(jobs)
