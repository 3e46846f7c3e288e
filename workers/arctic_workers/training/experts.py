"""Experts shared out over ranks by DeepSpeed's AutoEP, with their exchange overlapped by what stands between.

Arctic's experts read a layer's input from before attention, so tokens travel to their experts while attention runs, and
back while the residual MLP runs; in the backward pass likewise, in reverse. Shapes are named by the legend of
`arctic_model.layers`; R are the rows (choices of tokens) that this rank sends, P those that it receives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import deepspeed.comm as dist
import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import Tensor, nn

from arctic_model.config import ArcticConfig
from arctic_model.devices import Wait, counts_on_host
from arctic_model.moe import Experts, Router, Routing, count_choices, load_balancing_loss


class Exchange:
    """One all-to-all of rows between the ranks of a group, started in one place and waited for in another.

    Args:
        group: the ranks that share out the experts.
        sent, received: rows to and from each of them.
    """

    def __init__(self, group: Any, sent: list[int], received: list[int]) -> None:
        self._group = group
        self.sent = sent
        self.received = received
        self._work: Any = None
        self._buffers: tuple[Tensor, Tensor] | None = None

    def launch(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Start sending `rows` [sum of sent, D]; the returned [sum of received, D] is not filled before `wait`."""
        rows = rows.contiguous()
        arriving = rows.new_empty(sum(received), rows.shape[1])
        self._work = dist.all_to_all_single(arriving, rows, received, sent, group=self._group, async_op=True)
        self._buffers = (arriving, rows)  # both must live until the exchange is done
        return arriving

    def wait(self) -> Tensor:
        """Return what has arrived."""
        assert self._buffers is not None, "wait() without launch()"
        self._work.wait()
        arriving = self._buffers[0]
        self._work = self._buffers = None
        return arriving


class _Start(torch.autograd.Function):
    """Starts an exchange; in the backward pass ends the reverse one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.launch(rows, exchange.sent, exchange.received)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.wait(), None


class _Finish(torch.autograd.Function):
    """Ends an exchange; in the backward pass starts the reverse one."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.wait()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        exchange = ctx.exchange
        exchange.launch(gradient, exchange.received, exchange.sent)
        return gradient, None  # `_Start` takes its gradient from the exchange: this one only orders the two


_start = cast("Callable[[Tensor, Exchange], Tensor]", _Start.apply)
_finish = cast("Callable[[Tensor, Exchange], Tensor]", _Finish.apply)


class _Dispatched(NamedTuple):
    rows_PD: Tensor
    there: Exchange | None
    counts_RE: Tensor
    """Rows from each rank for each of this rank's experts."""
    order_R: Tensor
    routing: Routing
    shape: torch.Size


class _Computed(NamedTuple):
    rows_RD: Tensor
    back: Exchange | None
    dispatched: _Dispatched


class ParallelExperts(nn.Module):
    """The experts of one layer, of which this rank holds `num_experts / ep_size`: an `ExpertLayer`.

    As it is, for experts that are frozen: DeepSpeed gives it its group and sees no experts to train in it.
    """

    set_deepspeed_parallelism = AutoEPMoELayer.set_deepspeed_parallelism

    def __init__(self, config: ArcticConfig, ep_size: int, ep_rank: int) -> None:
        nn.Module.__init__(self)
        self.num_experts = config.num_local_experts
        self.num_local_experts = self.num_experts // ep_size
        self.ep_size = ep_size
        self.ep_rank = ep_rank
        self.ep_group_name = f"ep_size_{ep_size}"
        self.ep_group: Any = None  # DeepSpeed sets it, by set_deepspeed_parallelism
        self.router = Router(config.hidden_size, self.num_experts, config.num_experts_per_tok)
        self.experts = Experts(self.num_local_experts, config.hidden_size, config.intermediate_size)

    def mark_parameters(self) -> None:
        """Tell DeepSpeed which parameters differ from rank to rank; once they have memory, which makes them anew."""
        for parameter in self.experts.parameters():
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = self.ep_group_name  # type: ignore[attr-defined]
            parameter.ds_zero_placement_family = "autoep_expert"  # type: ignore[attr-defined]
            parameter.ds_zero_partition_group_name = self.ep_group_name  # type: ignore[attr-defined]

    @property
    def held(self) -> range:
        """Indices of the experts that this rank holds."""
        return range(self.ep_rank * self.num_local_experts, (self.ep_rank + 1) * self.num_local_experts)

    def dispatch(self, x_BTD: Tensor) -> _Dispatched:
        """Choose each token's experts and start sending tokens to them."""
        x_SD = x_BTD.flatten(0, -2)
        routing: Routing = self.router(x_SD)
        choices_R = routing.experts_SK.flatten()
        counts_RE = count_choices(choices_R, self.num_experts).view(self.ep_size, -1)
        if self.ep_size == 1:
            order_R = choices_R.argsort(stable=True)
            rows_RD = x_SD[order_R // routing.experts_SK.shape[-1]]
            return _Dispatched(rows_RD, None, counts_RE, order_R, routing, x_BTD.shape)
        arriving_RE = torch.empty_like(counts_RE)
        counting = dist.all_to_all_single(arriving_RE, counts_RE, group=self.ep_group, async_op=True)
        order_R = choices_R.argsort(stable=True)
        rows_RD = x_SD[order_R // routing.experts_SK.shape[-1]]
        counting.wait()
        sent, received = (counts_on_host(counts.sum(1), Wait.EXCHANGED_ROWS) for counts in (counts_RE, arriving_RE))
        there = Exchange(self.ep_group, sent, received)
        return _Dispatched(_start(rows_RD, there), there, arriving_RE, order_R, routing, x_BTD.shape)

    def compute(self, dispatched: _Dispatched) -> _Computed:
        """Run this rank's experts on what arrived and start sending results back."""
        there, counts_RE = dispatched.there, dispatched.counts_RE
        if there is None:
            return _Computed(self._run(dispatched.rows_PD, counts_RE[0]), None, dispatched)
        arrived_PD = _finish(dispatched.rows_PD, there)
        by_expert_P = _order_by_expert(counts_RE)
        results_PD = self._run(arrived_PD[by_expert_P], counts_RE.sum(0))
        back = Exchange(self.ep_group, there.received, there.sent)
        rows_RD = _start(results_PD[by_expert_P.argsort()], back)
        return _Computed(rows_RD, back, dispatched)

    def combine(self, computed: _Computed) -> tuple[Tensor, Tensor]:
        """Return each token's weighted sum [B, T, D] and the load-balancing loss of this rank's tokens."""
        routing, order_R = computed.dispatched.routing, computed.dispatched.order_R
        rows_RD = computed.rows_RD if computed.back is None else _finish(computed.rows_RD, computed.back)
        y_SKD = rows_RD[order_R.argsort()].view(*routing.experts_SK.shape, -1)
        y_SD = (y_SKD * routing.weights_SK[..., None]).sum(1)
        return y_SD.view(computed.dispatched.shape), load_balancing_loss(routing.probabilities_SE, routing.experts_SK)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """All three steps at once."""
        return self.combine(self.compute(self.dispatch(x_BTD)))

    def _run(self, rows_PD: Tensor, counts_E: Tensor) -> Tensor:
        """Run the experts; without any row too, so that every rank has a gradient to reduce for them."""
        if rows_PD.shape[0]:
            out: Tensor = self.experts(rows_PD, counts_E)
            return out
        nothing = sum(weight.sum() * 0 for weight in self.experts.parameters())
        return rows_PD + nothing


class TrainedExperts(ParallelExperts, AutoEPMoELayer):  # type: ignore[misc]
    """Experts that are trained.

    An instance of `AutoEPMoELayer` whose parameters carry its marks, because by these DeepSpeed reduces, clips and
    partitions experts over the right ranks. Its constructor is left out: it wants all of a layer's experts in memory.
    """


def _order_by_expert(counts_RE: Tensor) -> Tensor:
    """Return the order that brings rows, sorted by (sender, expert), into that by (expert, sender)."""
    experts_RE = torch.arange(counts_RE.shape[1], device=counts_RE.device).expand_as(counts_RE)
    return experts_RE.flatten().repeat_interleave(counts_RE.flatten()).argsort(stable=True)
