"""Experts shared out over ranks by DeepSpeed's AutoEP, with their exchange overlapped by what stands between.

Arctic's experts read a layer's input from before attention, so tokens travel to their experts while attention runs, and
back while the residual MLP runs. They go in chunks: the experts of one chunk run while the rows of the next one come
and the results of the one before leave. In the backward pass likewise, in reverse, and what is still waited for then is
filled with the gradients of the experts' weights, for which nobody waits. `journey` has the steps.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import Tensor, nn

from arctic_model.config import ArcticConfig
from arctic_model.devices import Wait, counts_on_host
from arctic_model.moe import Experts, Router, Routing, choice_shares, load_balancing_loss
from arctic_workers.training.experts.exchange import Exchange, Kind
from arctic_workers.training.experts.exposure import Flights
from arctic_workers.training.experts.grouped import GroupedProduct, Groups, PlainProduct, ends_of
from arctic_workers.training.experts.journey import Chunk, Journey, begin, fetch, run_experts, send
from arctic_workers.training.experts.probe import candidates_for
from arctic_workers.training.experts.products import Backlog, Weights
from arctic_workers.training.experts.routes import Routes, experts_of_chunk, order_by_expert

if TYPE_CHECKING:  # it knows of this package
    from arctic_workers.training.sequence import SequenceShare

CHUNKS = 2
"""Chunks before any other number is known to be faster."""


@dataclass
class Company:
    """What the layers of a model share."""

    layers: list["ParallelExperts"] = field(default_factory=list)
    """Those with experts, in their order."""
    flights: Flights = field(default_factory=Flights)
    """When exchanges start and arrive."""
    backlog: Backlog = field(default_factory=Backlog)
    product: GroupedProduct = field(default_factory=PlainProduct)
    """How experts are multiplied where they are in groups."""
    sequences: "SequenceShare | None" = None
    """What this rank has of each sequence; None where that is all."""


class _Dispatched(NamedTuple):
    sent: tuple[Tensor, ...]
    """What orders the functions of `journey`, of each chunk."""
    beginning: Tensor
    journey: Journey
    routing: Routing
    shape: torch.Size


class _Computed(NamedTuple):
    run: tuple[Tensor, ...]
    """What orders the functions of `journey`, of each chunk."""
    journey: Journey
    routing: Routing
    shape: torch.Size


class ParallelExperts(nn.Module):
    """The experts of one layer, of which this rank holds `num_experts / ep_size`: an `ExpertLayer`.

    As it is, for experts that are frozen: DeepSpeed gives it its group and sees no experts to train in it.
    """

    set_deepspeed_parallelism = AutoEPMoELayer.set_deepspeed_parallelism

    def __init__(self, config: ArcticConfig, ep_size: int, ep_rank: int, layer: int, company: Company) -> None:
        """`layer` is the global index; layers are made in their order."""
        nn.Module.__init__(self)
        self.num_experts = config.num_local_experts
        self.num_local_experts = self.num_experts // ep_size
        self.ep_size = ep_size
        self.ep_rank = ep_rank
        self.ep_group_name = f"ep_size_{ep_size}"
        self.ep_group: Any = None  # DeepSpeed sets it, by set_deepspeed_parallelism
        self.layer = layer
        self.company = company
        self._place = len(company.layers)
        company.layers.append(self)
        self._begun: tuple[Journey, Tensor] | None = None
        self.chunks = CHUNKS
        capacity = config.capacity if config.moe_token_dropping else None
        self.router = Router(config.hidden_size, self.num_experts, config.num_experts_per_tok, capacity)
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

    @property
    def chunks_to_try(self) -> tuple[int, ...]:
        """Numbers of chunks by which no bit of what is computed differs."""
        _, inner, hidden = self.experts.w1.shape
        size = self.experts.w1.element_size()
        return candidates_for(self.ep_size, self.num_local_experts, hidden * size, inner * size)

    def dispatch(self, x_BTD: Tensor) -> _Dispatched:
        """Choose each token's experts and start sending tokens to them."""
        x_SD = x_BTD.flatten(0, -2)
        if self._begun is None:  # the first layer
            self._begun = self._begin()
        (journey, beginning), self._begun = self._begun, None
        # The backward pass goes by age: so it asks for the next layer's weights only when it is through with this one.
        for following in self.company.layers[self._place + 1 : self._place + 2]:
            following._begun = following._begin()
        routing: Routing = self.router(x_SD)
        routes = Routes.of(routing.experts_SK, self.num_experts, self.ep_size, self._chunks, routing.kept_SK)
        leaving_WCE = routes.counts_CWE.transpose(0, 1)
        counting = self._exchange("counts", [1] * self.ep_size, [1] * self.ep_size)
        counting.launch(leaving_WCE.flatten(1).contiguous())
        journey.load(x_SD, routes.order_R, routing.experts_SK.shape[1])
        arriving_WCE = counting.wait().view(leaving_WCE.shape)
        if self.ep_size == 1 and self.company.product.takes(self.experts.w1):
            journey.chunks = [self._all_here(routes)]
        else:
            journey.chunks = self._plan(routes.counts_CWE, arriving_WCE.transpose(0, 1))
            if routing.kept_SK is not None:
                journey.leave_out_dropped()
        return _Dispatched(send(x_SD, journey), beginning, journey, routing, x_BTD.shape)

    def compute(self, dispatched: _Dispatched) -> _Computed:
        """Run this rank's experts on what arrived and start sending results back, chunk by chunk."""
        journey = dispatched.journey
        run = tuple(
            run_experts(sent, dispatched.beginning, journey, index) for index, sent in enumerate(dispatched.sent)
        )
        return _Computed(run, journey, dispatched.routing, dispatched.shape)

    def combine(self, computed: _Computed) -> tuple[Tensor, Tensor]:
        """Return each token's weighted sum [B, T, D] and the load-balancing loss.

        Experts' shares of the choices are those of whole sequences, the probabilities are this rank's: over ranks that
        share sequences the mean of such losses is the loss of all their tokens, and so are its gradients.
        """
        routing, sequences = computed.routing, self.company.sequences
        shares_E = choice_shares(routing.experts_SK, self.num_experts, routing.text)
        if sequences is not None:
            shares_E = sequences.mean(shares_E)
        y_SD = fetch(computed.run, routing.weights_SK, computed.journey)
        return y_SD.view(computed.shape), load_balancing_loss(routing.probabilities_SE, shares_E, routing.text)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """All three steps at once."""
        return self.combine(self.compute(self.dispatch(x_BTD)))

    def _begin(self) -> tuple[Journey, Tensor]:
        weights = Weights(self.experts.w1, self.experts.w2, self.experts.w3)
        journey = Journey(weights, self.company.backlog, self.experts.recomputes)
        return journey, begin(journey)

    @property
    def _chunks(self) -> int:
        return self.chunks if self.ep_size > 1 else 1

    def _all_here(self, routes: Routes) -> Chunk:
        """Return the chunk of one rank, for which no host has to know how many rows an expert has.

        Choices that were dropped are run as rows of the last expert, and count as nothing by their weight, which is 0.
        """
        ends_E = ends_of(routes.counts_CWE.flatten())
        ends_E[-1:].fill_(routes.order_R.shape[0])
        rows = [routes.order_R.shape[0]]
        there, back = self._exchange("dispatch", rows, rows), self._exchange("combine", rows, rows)
        return Chunk(there, back, Groups(ends_E, slice(0, self.num_experts), self.company.product), None)

    def _plan(self, leaving_CWE: Tensor, arriving_CWE: Tensor) -> list[Chunk]:
        plan = []
        leaving, arriving = self._on_host(leaving_CWE, arriving_CWE)
        for index, (sent_WE, received_WE, counts_WE) in enumerate(zip(leaving, arriving, arriving_CWE, strict=True)):
            sent, received, counts = sent_WE.sum(1).tolist(), received_WE.sum(1).tolist(), received_WE.sum(0).tolist()
            there, back = self._exchange("dispatch", sent, received), self._exchange("combine", received, sent)
            by_expert = order_by_expert(counts_WE, sum(counts)) if self.ep_size > 1 else None
            shares = self._groups(index, counts_WE) if self.company.product.takes(self.experts.w1) else counts
            plan.append(Chunk(there, back, shares, by_expert))
        return plan

    def _groups(self, chunk: int, counts_WE: Tensor) -> Groups:
        """Return the groups of a chunk whose rows come from all ranks: of the experts that have any in it."""
        experts = experts_of_chunk(chunk, self._chunks, self.num_local_experts)
        return Groups(ends_of(counts_WE[:, experts].sum(0)), experts, self.company.product)

    def _exchange(self, kind: Kind, sent: list[int], received: list[int]) -> Exchange:
        group = self.ep_group if self.ep_size > 1 else None
        return Exchange(self.layer, kind, group, sent, received, self.company.flights)

    def _on_host(self, leaving_CWE: Tensor, arriving_CWE: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Read both with one wait for the device; with one rank, what leaves arrives."""
        shape = arriving_CWE.shape
        if self.ep_size == 1:
            counts_CWE = np.reshape(counts_on_host(arriving_CWE.flatten(), Wait.EXPERT_ROWS), shape)
            return counts_CWE, counts_CWE
        both = torch.stack([leaving_CWE, arriving_CWE]).flatten()
        leaving, arriving = np.reshape(counts_on_host(both, Wait.EXCHANGED_ROWS), (2, *shape))
        return leaving, arriving


class TrainedExperts(ParallelExperts, AutoEPMoELayer):  # type: ignore[misc]
    """Experts that are trained.

    An instance of `AutoEPMoELayer` whose parameters carry its marks, because by these DeepSpeed reduces, clips and
    partitions experts over the right ranks. Its constructor is left out: it wants all of a layer's experts in memory.
    """
