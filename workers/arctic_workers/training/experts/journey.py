"""The journey of a layer's rows to their experts and back, as autograd sees it: four functions around exchanges.

Autograd runs what is ready, the youngest first. So the order in which these are called in the forward pass is, turned
round, that of the backward pass, and each exchange starts in one function and is waited for in another:

    forward    begin  send          (attention)    run_experts ... (residual MLP)  fetch
    dispatch          launch all                   wait, in turn
    combine                                        launch, in turn                 wait all

    backward   fetch  (residual MLP)  run_experts, the last chunk first  (attention)  send  begin
    combine    launch all             wait, in turn
    dispatch                          launch, in turn                                 wait all

What they give each other, but for the sums at the end, are empty tensors: these order them, and the rows are in the
exchanges. Shapes are named by the legend of `arctic_model.layers`; R are the rows that this rank sends, P those of a
chunk that it receives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from arctic_model.regions import region
from arctic_workers.training.experts import products
from arctic_workers.training.experts.exchange import Exchange
from arctic_workers.training.experts.grouped import Groups
from arctic_workers.training.experts.products import Backlog, Shares, WeightGradients, Weights
from arctic_workers.training.experts.routes import inverse


@dataclass
class Chunk:
    """A part of the rows: its exchanges, and what this rank's experts get of it."""

    there: Exchange
    back: Exchange
    shares: Shares
    """Which of the rows that arrive are whose, of this rank's experts."""
    by_expert: Tensor | None
    """The order of arriving rows that brings them together by expert; None where they are so already."""


@dataclass
class Journey:
    """What the steps of one layer's forward and backward pass share, beside what autograd keeps."""

    weights: Weights
    backlog: Backlog
    recomputes: bool
    """Whether the backward pass keeps what experts got, and computes the rest again."""
    drops: bool = field(default=False, init=False)
    """Whether some choices have no row: their place is the one after the last."""
    chunks: list[Chunk] = field(default_factory=list)
    gradients: WeightGradients = field(init=False)
    order_R: Tensor = field(init=False)
    """Of each row that is sent, which choice it is."""
    tokens_R: Tensor = field(init=False)
    """Of each row that is sent, of which token it is a copy."""
    places_SK: Tensor = field(init=False)
    """Of each choice, which row it is."""
    rows_RD: Tensor = field(init=False)
    """The rows until they are sent."""
    _coming_RD: Tensor | None = field(default=None, init=False)

    def load(self, x_SD: Tensor, order_R: Tensor, chosen: int) -> None:
        """Sort copies of the tokens into the order in which they are sent."""
        self.order_R = order_R
        self.tokens_R = order_R // chosen
        with torch.no_grad():
            self.rows_RD = x_SD.index_select(0, self.tokens_R)
        self.places_SK = inverse(order_R).view(-1, chosen)

    def leave_out_dropped(self) -> None:
        """Take the rows away of the choices that were dropped, which are the last: once it is known how many stay."""
        self.drops, stay = True, sum(self.sizes)
        self.order_R, self.tokens_R, self.rows_RD = self.order_R[:stay], self.tokens_R[:stay], self.rows_RD[:stay]
        self.places_SK.clamp_(max=stay)

    def with_dropped(self, rows_RD: Tensor) -> Tensor:
        """Return rows to which choices that were dropped have a place too, with nothing in it."""
        return torch.cat([rows_RD, rows_RD.new_zeros(1, rows_RD.shape[1])]) if self.drops else rows_RD

    @property
    def sizes(self) -> list[int]:
        """Rows of each chunk that this rank sends."""
        return [sum(chunk.there.sent) for chunk in self.chunks]

    def place(self, index: int, leaving_PD: Tensor) -> Tensor | None:
        """Return where the rows of a chunk, for which others leave, are to arrive: side by side with other chunks'."""
        if len(self.chunks) == 1:
            return None
        if self._coming_RD is None:
            self._coming_RD = leaving_PD.new_empty(sum(self.sizes), leaving_PD.shape[1])
        return torch.split(self._coming_RD, self.sizes)[index]

    def together(self, arrived: Sequence[Tensor]) -> Tensor:
        """Return the rows of all chunks, each of which is where it was to arrive: [R, D]."""
        rows_RD, self._coming_RD = self._coming_RD, None
        return arrived[0] if rows_RD is None else rows_RD


def begin(journey: Journey) -> Tensor:
    """Return what `run_experts` wants, to which the gradients of the weights are given at the end.

    The earlier this is called, the later these are asked for, and the more waits they may fill.
    """
    return cast("Callable[..., Tensor]", _Begin.apply)(*journey.weights, journey)


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w1: Tensor, w2: Tensor, w3: Tensor, journey: Journey) -> Tensor:
        journey.weights = Weights(w1.detach(), w2.detach(), w3.detach())
        ctx.journey = journey
        ctx.gradients = journey.gradients = WeightGradients(journey.weights, journey.backlog)
        return w1.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *ctx.gradients.finish(), None


def send(x_SD: Tensor, journey: Journey) -> tuple[Tensor, ...]:
    """Send a loaded journey's rows to their experts: returns what `run_experts` wants of each chunk."""
    return cast("Callable[..., tuple[Tensor, ...]]", _Send.apply)(x_SD, journey)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, journey: Journey) -> tuple[Tensor, ...]:
        ctx.journey = journey
        ctx.tokens = x_SD.shape[0]
        rows = torch.split(journey.rows_RD, journey.sizes)
        del journey.rows_RD
        for chunk, rows_rD in zip(journey.chunks, rows, strict=True):
            chunk.there.launch(rows_rD)
        return tuple(x_SD.new_empty(0) for _ in rows)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        journey: Journey = ctx.journey
        arrived = [chunk.there.wait(journey.backlog.work) for chunk in reversed(journey.chunks)]
        return _summed(journey.with_dropped(journey.together(arrived)), journey.places_SK), None


@region
def _summed(rows_RD: Tensor, places_SK: Tensor) -> Tensor:
    """Return the sum of each token's rows: [S, D]."""
    first_S, *others = places_SK.unbind(1)
    sum_SD = rows_RD.index_select(0, first_S)
    for places_S in others:
        sum_SD += rows_RD.index_select(0, places_S)
    return sum_SD


def run_experts(sent: Tensor, beginning: Tensor, journey: Journey, index: int) -> Tensor:
    """Run the experts on a chunk and send the results: returns what `fetch` wants of it."""
    return cast("Callable[..., Tensor]", _RunExperts.apply)(sent, beginning, journey, index)


class _RunExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, __: Tensor, journey: Journey, index: int) -> Tensor:
        chunk = journey.chunks[index]
        x_PD = chunk.there.wait()
        if chunk.by_expert is not None:
            x_PD = x_PD.index_select(0, chunk.by_expert)
        y_PD, kept = products.forward(x_PD, chunk.shares, journey.weights)
        ctx.journey, ctx.index = journey, index
        ctx.save_for_backward(*(kept[:1] if journey.recomputes else kept))
        leaving_PD = _as_they_came(y_PD, chunk)
        chunk.back.launch(leaving_PD, journey.place(index, leaving_PD))
        return x_PD.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        journey: Journey = ctx.journey
        chunk = journey.chunks[ctx.index]
        x_PD, *others = ctx.saved_tensors
        kept = products.Forward(x_PD, *others) if others else products.enter(x_PD, chunk.shares, journey.weights)
        y_grad_PD = chunk.back.wait(journey.backlog.work)
        if chunk.by_expert is not None:
            y_grad_PD = y_grad_PD.index_select(0, chunk.by_expert)
        x_grad_PD, made = products.backward(y_grad_PD, chunk.shares, journey.weights, kept)
        leaving_PD = _as_they_came(x_grad_PD, chunk)
        chunk.there.launch_back(leaving_PD, journey.place(ctx.index, leaving_PD))
        if ctx.needs_input_grad[1]:
            journey.gradients.put_off(chunk.shares, kept, made)
            if chunk.there.group is None and isinstance(chunk.shares, Groups):
                journey.backlog.work_off()  # a GPU has no wait to fill: what is kept for it only takes memory
        return leaving_PD.new_empty(0), leaving_PD.new_empty(0), None, None


def _as_they_came(rows_PD: Tensor, chunk: Chunk) -> Tensor:
    if chunk.by_expert is None:
        return rows_PD
    return rows_PD.index_select(0, inverse(chunk.by_expert))


def fetch(run: tuple[Tensor, ...], weights_SK: Tensor, journey: Journey) -> Tensor:
    """Return the sum of each token's results times their weights, in the order of choice: [S, D]."""
    return cast("Callable[..., Tensor]", _Fetch.apply)(weights_SK, journey, *run)


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_SK: Tensor, journey: Journey, *_: Tensor) -> Tensor:
        rows_RD = journey.with_dropped(journey.together([chunk.back.wait() for chunk in journey.chunks]))
        ctx.journey = journey
        ctx.save_for_backward(rows_RD, weights_SK)
        return _weighted(rows_RD, weights_SK, journey.places_SK)

    @staticmethod
    def backward(ctx: Any, y_grad_SD: Tensor) -> tuple[Tensor | None, ...]:
        journey: Journey = ctx.journey
        rows_RD, weights_SK = ctx.saved_tensors
        weights_R1 = weights_SK.flatten()[journey.order_R][:, None]
        parts = zip(
            journey.chunks,
            torch.split(journey.tokens_R, journey.sizes),
            torch.split(weights_R1, journey.sizes),
            strict=True,
        )
        for chunk, tokens_r, weights_r1 in reversed(list(parts)):
            chunk.back.launch_back(_spread(y_grad_SD, tokens_r, weights_r1))
        weights_grad_SK = _met(rows_RD, y_grad_SD, journey.places_SK)
        return weights_grad_SK, None, *(y_grad_SD.new_empty(0) for _ in journey.chunks)


@region
def _weighted(rows_RD: Tensor, weights_SK: Tensor, places_SK: Tensor) -> Tensor:
    """Return the sum of each token's rows times their weights: [S, D]."""
    weights_KS1, places_KS = weights_SK.t()[..., None], places_SK.t()
    y_SD = rows_RD.index_select(0, places_KS[0]).mul_(weights_KS1[0])
    for weights_S1, places_S in zip(weights_KS1[1:], places_KS[1:], strict=True):
        y_SD.addcmul_(rows_RD.index_select(0, places_S), weights_S1)
    return y_SD


@region
def _spread(x_SD: Tensor, tokens_R: Tensor, weights_R1: Tensor) -> Tensor:
    """Return of each row its token times its weight: [R, D]."""
    return x_SD.index_select(0, tokens_R).mul_(weights_R1)


@region
def _met(rows_RD: Tensor, x_SD: Tensor, places_SK: Tensor) -> Tensor:
    """Return the inner product of each token with each of its rows: [S, K]."""
    return torch.stack([(rows_RD.index_select(0, places_S) * x_SD).sum(1) for places_S in places_SK.unbind(1)], 1)
