"""What is summed up on the device between two looks at a run, so that no step waits: routers, losses by source."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from arctic_model import devices
from arctic_model.moe import Router, Routing, count_of_text

DEAD_STEPS = 100
"""An expert is dead that got no token for so many steps, or more: as far as it was looked."""

BESIDES = 3
"""What is summed up of a router beside the choices of each expert: entropy, tokens, choices that were dropped."""


@dataclass(frozen=True)
class RouterHealth:
    """How the router of a layer has shared out tokens between two looks, over all ranks."""

    layer: int
    load: Sequence[float]
    """Share of the choices that fell on each expert, dropped ones too, summing to 1; even routing gives 1 / experts."""
    entropy: float
    """Mean entropy of a token's probabilities, over that of even ones: from 0 (certain) to 1 (no preference)."""
    dead: Sequence[int]
    """Experts without a token for `DEAD_STEPS` steps."""
    dropped: float = 0.0
    """Share of the choices that were dropped: 0 unless the model has a capacity."""

    @property
    def imbalance(self) -> float:
        """Load of the busiest expert, over that of even routing."""
        return max(self.load, default=0.0) * len(self.load)


@dataclass(frozen=True)
class Look:
    """What was summed up."""

    loss_by_source: Mapping[str, float] = field(default_factory=dict)
    """Mean loss of the labels of each source that was drawn from, in nats."""
    routers: Sequence[RouterHealth] = ()


class Tally:
    """One rank's sums.

    Args:
        module: the model with its loss, which keeps `rows_B2`; each of its routers is listened to.
        sources: names of all sources.
        device: where the sums are kept.
    """

    def __init__(self, module: nn.Module, sources: Sequence[str], device: torch.device) -> None:
        self._sources = list(sources)
        self._routers = {name: part for name, part in module.named_modules() if isinstance(part, Router)}
        sizes = [2 * len(self._sources), *(router.gate.out_features + BESIDES for router in self._routers.values())]
        self._sums = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        self._losses, *self._of_routers = torch.split(self._sums, sizes)
        self._counting = False
        self._expected: list[Sequence[str]] = []
        module.register_forward_hook(self._hear_losses)
        self._last_used = [[0] * router.gate.out_features for router in self._routers.values()]
        for router, sums in zip(self._routers.values(), self._of_routers, strict=True):
            router.register_forward_hook(self._listen(sums))

    def begin(self, step: int) -> None:
        """Begin after so many steps of the run: before them nobody looked, and what came after them holds no more."""
        self._sums.zero_()
        self._last_used = [[step] * len(steps) for steps in self._last_used]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Listen during a forward pass of the training; recomputing it in the backward pass is not heard."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def _listen(self, sums: Tensor) -> Callable[[nn.Module, Any, Routing], None]:
        counts_E, rest = sums[:-BESIDES], sums[-BESIDES:]

        def hear(router: nn.Module, _: Any, routing: Routing) -> None:  # noqa: ARG001 - the hook's interface
            if not self._counting:
                return
            with torch.no_grad():
                text_S = torch.ones_like(routing.experts_SK[:, 0]) if routing.text is None else routing.text.mask_S
                counts_E.add_(count_of_text(routing.experts_SK, len(counts_E), routing.text))
                rest[0] += (torch.special.entr(routing.probabilities_SE).sum(1) * text_S).sum()
                rest[1] += text_S.sum()
                if routing.kept_SK is not None:
                    rest[2] += ((~routing.kept_SK).sum(1) * text_S).sum()

        return hear

    def expect(self, micro_batches: Sequence[Sequence[str]]) -> None:
        """Say which source each sequence of the micro-batches is from that are counted next."""
        self._expected = list(micro_batches)

    def _hear_losses(self, module: nn.Module, *_: Any) -> None:
        """Add the loss of each sequence of a micro-batch to that of its source."""
        if not self._counting or not self._expected:
            return
        sources, rows_B2 = self._expected.pop(0), module.rows_B2
        assert isinstance(rows_B2, Tensor), "the module is one that keeps the losses of rows"
        # Made on the host and sent, without a wait: a step's places are known before it.
        numbers = torch.tensor([self._sources.index(source) for source in sources])
        places = devices.on_device(numbers, rows_B2.device)
        with torch.no_grad():
            self._losses.view(-1, 2).index_add_(0, places, rows_B2.to(self._losses.dtype))

    def look(self, step: int, add_up: Callable[[Tensor], Sequence[float]]) -> Look:
        """Return what was summed up over all ranks since the last look, and begin anew. Collective.

        Args:
            step: steps of the run up to now.
            add_up: returns the sums over all ranks of a tensor, on the host.
        """
        sums = list(add_up(self._sums))
        self._sums.zero_()
        losses, at = {}, 2 * len(self._sources)
        for index, source in enumerate(self._sources):
            total, count = sums[2 * index : 2 * index + 2]
            if count:
                losses[source] = total / count
        health = []
        for (name, router), last_used in zip(self._routers.items(), self._last_used, strict=True):
            experts = router.gate.out_features
            health.append(self._health(_layer(name), sums[at : at + experts + BESIDES], last_used, step))
            at += experts + BESIDES
        return Look(losses, [found for found in health if found])

    def _health(self, layer: int, sums: Sequence[float], last_used: list[int], step: int) -> RouterHealth | None:
        *counts, entropy, tokens, dropped = sums
        if not tokens:
            return None
        for expert, count in enumerate(counts):
            if count:
                last_used[expert] = step
        total, even = sum(counts), math.log(len(counts))
        return RouterHealth(
            layer=layer,
            load=[count / total for count in counts],
            entropy=entropy / tokens / even if even else 1.0,
            dropped=dropped / total,
            dead=[expert for expert, used in enumerate(last_used) if step - used >= DEAD_STEPS],
        )


def _layer(name: str) -> int:
    """Return the number of the layer that a module's name is of."""
    return next(int(part) for part in name.split(".") if part.isdigit())
