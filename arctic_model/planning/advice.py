"""What to change in a group that does not fit. Pure: each piece of advice is a plan that was made, and fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from arctic_model.planning.devices import BYTES, Device, Format
from arctic_model.planning.serving import PAGE, Serving, ServingPlan, plan_serving

MOST_PIPELINE_RANKS = 64
"""As many as a manifest takes."""

Fields = dict[str, int | str]
"""Fields of a manifest's specification, and what to write there."""
Allowed = Callable[[Fields], bool]
"""Says whether fields may be written so, whatever their plan: an engine may not know a format."""
_Candidates = Iterable[tuple[Fields, Serving]]


@dataclass(frozen=True)
class Change:
    """Fields to write, and the plan that comes of it."""

    fields: Fields
    plan: ServingPlan


def advise(plan: ServingPlan, allowed: Allowed = lambda _: True) -> list[Change]:
    """Changes to a group that doesn't fit, each enough by itself; several at once only where none is. None may help."""
    serving, device = plan.serving, plan.device
    alone = (_weights(serving), _kv_caches(serving), _shorter(plan), layouts(serving, device))
    changes = [change for way in alone if (change := _first(way, device, allowed))]
    if changes:
        return changes
    together = _first(_narrower_layouts(serving, device), device, allowed)
    return [together] if together else []


def _first(candidates: _Candidates, device: Device, allowed: Allowed) -> Change | None:
    for fields, serving in candidates:
        if allowed(fields) and (plan := plan_serving(serving, device)).fits:
            return Change(fields, plan)
    return None


def _narrower(format_: Format) -> list[Format]:
    order: tuple[Format, ...] = ("bf16", "fp8")
    return [other for other in order if BYTES[other] < BYTES[format_]]


def _weights(serving: Serving) -> Iterator[tuple[Fields, Serving]]:
    for format_ in _narrower(serving.weights):
        yield {"quantization.weights": format_}, replace(serving, weights=format_)


def _kv_caches(serving: Serving) -> Iterator[tuple[Fields, Serving]]:
    for format_ in _narrower(serving.kv_cache):
        yield {"quantization.kvCache": format_}, replace(serving, kv_cache=format_)


def _shorter(plan: ServingPlan) -> Iterator[tuple[Fields, Serving]]:
    if tokens := plan.kv_tokens // PAGE * PAGE:
        yield {"attention.maxLength": tokens}, replace(plan.serving, max_length=tokens)


def layouts(serving: Serving, device: Device) -> Iterator[tuple[Fields, Serving]]:
    """Every tensor x pipeline that the model can be cut into: fewest nodes first, as a pod has a node, then devices."""
    most = min(serving.config.num_hidden_layers, MOST_PIPELINE_RANKS)
    degrees = product(range(1, most + 1), _tensor_degrees(replace(serving, pipeline=most), device))
    whole = plan_serving(replace(serving, tensor=1, pipeline=1), device).ranks[0].weights.total()
    for pipeline, tensor in degrees:
        if whole < tensor * pipeline * device.memory:  # else it need not be tried
            fields: Fields = {"parallelism.tensor": tensor, "parallelism.pipeline": pipeline}
            yield fields, replace(serving, tensor=tensor, pipeline=pipeline)


def _tensor_degrees(serving: Serving, device: Device) -> list[int]:
    """Degrees that the model can be cut into and that fit, for a group of so many pipeline ranks."""

    def possible(tensor: int) -> bool:
        try:
            return plan_serving(replace(serving, tensor=tensor), device).fits
        except ValueError:
            return False

    return [tensor for tensor in range(1, device.per_node + 1) if possible(tensor)]


def _narrower_layouts(serving: Serving, device: Device) -> Iterator[tuple[Fields, Serving]]:
    """Layouts with narrower weights, with narrower keys and values, with both."""
    _, *formats = product([({}, serving), *_weights(serving)], [({}, serving), *_kv_caches(serving)])
    for (fields, narrow), (kv_fields, kv) in formats:
        for layout, candidate in layouts(replace(narrow, kv_cache=kv.kv_cache), device):
            yield {**fields, **kv_fields, **layout}, candidate
