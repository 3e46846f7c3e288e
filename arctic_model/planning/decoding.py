"""How fast a group decodes a batch at most, and what binds it: memory or arithmetic.

A roofline (Williams et al. 2009) a pipeline rank and micro-batch: bytes of weights, keys and values over the memory's
bandwidth, or FLOPs over the device's rate, whichever takes longer, and then what tensor ranks add up over their fabric.
Pipeline ranks work at once on as many micro-batches; with fewer requests than ranks, they wait. Kernel starts, prompts
and latencies of lines come on top: nothing is faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from arctic_model.planning.devices import BYTES, Device, Format, Lines
from arctic_model.planning.serving import RankMemory, Serving, ServingPlan
from arctic_model.planning.serving_time import EngineStep, decoding_step

Bound = Literal["memory", "arithmetic"]
ALL_REDUCES = 2
"""Of each layer: after attention, and after the residual MLP and the experts together."""


@dataclass(frozen=True)
class Decoding:
    """One token more for each of `batch` requests."""

    batch: int
    seconds: float
    """Between a request's tokens."""
    bound: Bound
    """What takes longer on the rank that takes longest."""
    lines: float
    """Seconds of those that bytes take between ranks."""

    @property
    def tokens_per_second(self) -> float:
        """Of the group."""
        return self.batch / self.seconds

    def cost(self, devices: int, price_per_hour: float) -> float:
        """US dollars a million tokens."""
        return devices * price_per_hour / 3600 / self.tokens_per_second * 1e6


def decode(plan: ServingPlan, batch: int, context: int) -> Decoding | None:
    """Bound a step of `batch` requests that have `context` tokens each; None where the device's rates aren't known."""
    serving, device = plan.serving, plan.device
    ranks = len(plan.ranks)
    size = -(-batch // ranks)
    flying = -(-batch // size)
    limits = rank_limits(plan, decoding_step(size, _kept(serving, context)))
    if limits is None:
        return None
    times, reduced = [limit.seconds for limit in limits], [limit.lines for limit in limits]
    slowest = times.index(max(times))
    hops = (ranks - 1) * _row_bytes(serving) * size / device.network if device.network else 0.0
    through, full = sum(times) + hops, flying * times[slowest]
    return Decoding(
        batch,
        seconds=max(through, full),
        bound="memory" if limits[slowest].memory >= limits[slowest].arithmetic else "arithmetic",
        lines=sum(reduced) + hops if through >= full else flying * reduced[slowest],
    )


@dataclass(frozen=True)
class RankLimit:
    """The least seconds of a step on one pipeline rank."""

    memory: float
    arithmetic: float
    lines: float
    """Of what its tensor ranks add up."""

    @property
    def seconds(self) -> float:
        """Reading and multiplying at once, then adding up."""
        return max(self.memory, self.arithmetic) + self.lines


def rank_limits(plan: ServingPlan, step: EngineStep) -> list[RankLimit] | None:
    """Bound any step, prompts among it, on each pipeline rank; None where the device's rates aren't known."""
    rate, bandwidth = multiplying_rate(plan.serving, plan.device), plan.device.bandwidth
    if rate is None or bandwidth is None:
        return None
    return [
        RankLimit(
            memory=(rank.read(step.rows) + step.cached * rank.kv_bytes_per_token) / bandwidth,
            arithmetic=_flops(plan, rank, step) / rate,
            lines=_reduction_seconds(plan, rank, step.rows),
        )
        for rank in plan.ranks
    ]


def compute_bound_from(plan: ServingPlan, context: int, most: int = 2**20) -> int | None:
    """Return the fewest requests at once that arithmetic binds; None where memory does at `most` too."""

    def bound(batch: int) -> bool:
        step = decode(plan, batch, context)
        return step is not None and step.bound == "arithmetic"

    if not bound(most):
        return None
    low, high = 0, most  # arithmetic grows with each request, weights are read once for all of them
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bound(middle) else (middle, high)
    return high


def most_within(plan: ServingPlan, context: int, seconds: float) -> Decoding | None:
    """Return the largest step of at most `seconds`, for which there is room; None where one request takes longer."""
    low, high = 0, min(plan.serving.max_sequences, plan.kv_tokens // max(context, 1))
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        step = decode(plan, middle, context)
        if step is not None and step.seconds <= seconds:
            low, best = middle, step
        else:
            high = middle - 1
    return best


def best_layout(plans: Iterable[ServingPlan], context: int, seconds: float) -> tuple[ServingPlan, Decoding] | None:
    """Return the layout with most tokens a second of each device whose step takes at most `seconds`; None if none."""
    steps = ((plan, most_within(plan, context, seconds)) for plan in plans)
    fast = [(plan, step) for plan, step in steps if step is not None]
    return max(fast, key=lambda pair: pair[1].tokens_per_second / pair[0].devices, default=None)


def multiplying_rate(serving: Serving, device: Device) -> float | None:
    """Return the FLOPs a second of the format that a group multiplies in: FP8 where weights and device have it."""
    if serving.compute == "bf16" and serving.weights == "fp8" and device.fp8_flops is not None:
        return device.fp8_flops
    format_: Format = serving.compute
    return device.flops(format_)


def _kept(serving: Serving, context: int) -> int:
    return context if serving.visible is None else min(context, serving.visible)


def _flops(plan: ServingPlan, rank: RankMemory, step: EngineStep) -> float:
    """Of a device of a pipeline rank: two a multiply-add."""
    serving, config = plan.serving, plan.serving.config
    multiplications = step.rows * rank.multiplications
    # Scores, and what they weigh.
    multiplications += 2 * step.seen * config.hidden_size * len(rank.layers)
    if rank.weights["lm_head"]:
        multiplications += step.draws * config.vocab_size * config.hidden_size
    return 2 * multiplications / serving.tensor


def _reduction_seconds(plan: ServingPlan, rank: RankMemory, tokens: int) -> float:
    """Of what the tensor ranks of a pipeline rank add up: a ring sends everything twice, but for its own part."""
    tensor = plan.serving.tensor
    sent = 2 * (tensor - 1) / tensor * ALL_REDUCES * len(rank.layers) * tokens * _row_bytes(plan.serving)
    return Lines(plan.device, tensor).seconds(sent, tensor) if tensor > 1 else 0.0


def _row_bytes(serving: Serving) -> int:
    return serving.config.hidden_size * BYTES[serving.compute]
