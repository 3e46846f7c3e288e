"""How long a step of one rank takes, predicted: what it does, counted, times what each of that costs on a machine.

`arctic_model.planning.training` bounds a step from below; this predicts it, from costs that were measured
(`arctic_model.planning.fitting`). A step is a sum over kinds of work, as Ernest has it (Venkataraman et al. 2016):
on a CPU one thing is done after the other, and nothing hides behind anything else.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters
from arctic_model.planning.training import saved_by_layer


@dataclass(frozen=True)
class TrainingWork:
    """What one step does; and with the same fields, in seconds, what one of each costs."""

    dense: float
    """FLOPs of products that all tokens share, forward and backward, the output matrix's among them."""
    experts: float
    """FLOPs of the experts' products."""
    attention: float
    """FLOPs of scores, and of what they weigh."""
    elements: float
    """Elements that are kept for the backward pass: each was written once and is read again."""
    logits: float
    """Logits: exponentials, and gradients."""
    weights: float
    """Parameters, once a micro-batch: their gradients are made, and added to those before."""
    updated: float
    """Parameters, once a step."""
    expert_calls: float
    """Experts of a layer, once a micro-batch: the starts of their products."""
    layers: float
    """Layers, once a micro-batch: the starts of all else."""
    micro_batches: float

    @property
    def amounts(self) -> tuple[float, ...]:
        """In the order of the fields."""
        return astuple(self)


@dataclass(frozen=True)
class RankStep:
    """What one rank computes in one step."""

    config: ArcticConfig
    micro_batches: int
    sequences: int
    """Of a micro-batch."""
    length: int
    """Tokens of a sequence."""

    @property
    def tokens(self) -> int:
        """Of the step."""
        return self.micro_batches * self.sequences * self.length

    @property
    def work(self) -> TrainingWork:
        """Count it; experts are taken to be chosen evenly."""
        config, count = self.config, count_parameters(self.config)
        layers, hidden = config.num_hidden_layers, config.hidden_size
        of_experts = count.experts // config.num_local_experts * config.num_experts_per_tok
        dense = count.active - of_experts - config.vocab_size * hidden  # the embedding is looked up
        return TrainingWork(
            dense=6 * self.tokens * dense,
            experts=6 * self.tokens * of_experts,
            # Half of the pairs: no token sees those after it.
            attention=6 * self.tokens * self.length * hidden * layers,
            elements=self.tokens * sum(saved_by_layer(config, layer) for layer in range(layers)),
            logits=self.tokens * config.vocab_size,
            weights=self.micro_batches * count.total,
            updated=count.total,
            expert_calls=self.micro_batches * config.expert_layers * config.num_local_experts,
            layers=self.micro_batches * layers,
            micro_batches=self.micro_batches,
        )


# What a core or two of a server's processor take; where a calibration begins.
TYPICAL = TrainingWork(
    dense=1 / 90e9,
    experts=1 / 80e9,
    attention=1 / 40e9,
    elements=3e-9,
    logits=3e-9,
    weights=0.5e-9,
    updated=2e-9,
    expert_calls=1e-4,
    layers=1e-3,
    micro_batches=1e-3,
)


def seconds(step: RankStep, costs: TrainingWork) -> float:
    """Predict a step."""
    return sum(amount * cost for amount, cost in zip(step.work.amounts, costs.amounts, strict=True))
