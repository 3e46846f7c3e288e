"""How a plan of serving is said: a table for people, JSON for programs. Pure."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from arctic_cli.plan.text import GB, MB, aligned, billions, count, size_unit, written
from arctic_model.cost import count_parameters
from arctic_model.planning.advice import Change
from arctic_model.planning.decoding import Decoding, compute_bound_from, decode, most_within
from arctic_model.planning.serving import PARTS, RankMemory, Serving, ServingPlan
from arctic_model.planning.serving_time import ServingCosts, decoding_step, seconds

CACHE_BYTES = 128 * MB
"""About as much as the largest of the table's devices has of cache for all of its cores."""


@dataclass(frozen=True)
class Report:
    """A plan and what is said around it."""

    name: str
    engine: str
    source: str
    """Where the model's configuration was found."""
    replicas: int
    tensor: int
    """Ranks of a pod, as the manifest has them; of the native engine they share a device."""
    plan: ServingPlan
    others: dict[str, ServingPlan]
    """The same group on other devices."""
    changes: list[Change]
    """What would make it fit."""
    refused: list[str]
    """Why the API server would not take the manifest."""
    price: float | None
    """US dollars a GPU hour."""
    costs: ServingCosts | None
    """Of steps, where they were measured."""
    target: float | None
    """Seconds between a request's tokens that the manifest wants at most."""
    best: tuple[ServingPlan, Decoding] | None
    """The layout that gives most within the target."""

    @property
    def notes(self) -> list[str]:
        """What the figures rest on, or don't say, in this case."""
        plan, serving, device = self.plan, self.plan.serving, self.plan.device
        is_cpu = device.bf16_flops is None
        notes = [f"arctic validate refuses this manifest: {problem}" for problem in self.refused]
        if self.engine == "native" and not is_cpu:
            notes.append("the native engine runs on CPUs only")
        if self.tensor != serving.tensor:
            notes.append("tensor ranks of the native engine are shares of one machine, which is one device here")
        if is_cpu and serving.pipeline > 1:
            notes.append("each pipeline rank is taken to have a machine like this one to itself")
        if serving.weights == "fp8" and not is_cpu and device.fp8_flops is None:
            notes.append(f"{device.title} has no units for FP8: only an engine that multiplies in bf16 runs there")
        if plan.fits and plan.sequences < serving.max_sequences:
            notes.append(
                f"batching.maxSequences is {serving.max_sequences:,}: so many have room only if they are shorter"
            )
        if max(rank.read(1) for rank in plan.ranks) < CACHE_BYTES:
            notes.append("weights that small may stay in a processor's caches, and the limit is none then")
        return notes


def render_table(report: Report) -> str:
    """Return a report for people."""
    plan, serving = report.plan, report.plan.serving
    parameters = count_parameters(serving.config)
    lines = [
        f"{report.name} ({report.source}): {billions(parameters.total)} parameters, "
        f"a token uses {billions(parameters.active)}",
        f"weights {serving.weights}, keys and values {serving.kv_cache}, engine {report.engine}",
        f"a group: tensor {report.tensor} x pipeline {serving.pipeline} = {count(plan.devices, 'device')} "
        f"({plan.device.title}) on {count(serving.pipeline, 'node')}; {count(report.replicas, 'group')}",
        "",
        *aligned(_rank_rows(plan)),
        "",
        _conclusion(plan),
        *_advice(report),
        *_limits(plan),
    ]
    if plan.fits and (batches := _batches(plan)):
        lines += ["", *aligned(_batch_rows(report, batches)), *_turning_point(plan), *_target(report)]
    if report.others:
        lines += ["", *aligned(_device_rows(report))]
    if report.notes:
        lines += ["", *(f"Note: {note}." for note in report.notes)]
    return "\n".join(lines)


def _rank_rows(plan: ServingPlan) -> list[list[str]]:
    """One column for neighbouring pipeline ranks that are alike; parts that no rank has are left out."""
    columns = _alike(plan.ranks)
    ranks = [plan.ranks[column.start] for column in columns]
    unit, size = size_unit(max(rank.weights.total() for rank in ranks))

    def row(title: str, value: Callable[[RankMemory], str]) -> list[str]:
        return [title, *map(value, ranks)]

    def amount(title: str, value: Callable[[RankMemory], int]) -> list[str]:
        return row(title, lambda rank: f"{value(rank) / size:,.3f}")

    def of_part(part: str) -> Callable[[RankMemory], int]:
        return lambda rank: rank.weights[part]

    layers = [range(plan.ranks[each.start].layers.start, plan.ranks[each.stop - 1].layers.stop) for each in columns]
    return [
        [f"{unit} on each device", *(f"rank {_span(column)}" for column in columns)],
        ["layers", *map(_span, layers)],
        *(amount(part, of_part(part)) for part in PARTS if any(rank.weights[part] for rank in ranks)),
        *([amount("scales", lambda rank: rank.scales.total())] if ranks[0].scales else []),
        amount("= weights", lambda rank: rank.weights.total() + rank.scales.total()),
        amount("activations of a step", lambda rank: rank.activations),
        amount("runtime", lambda rank: rank.runtime),
        amount("memory", lambda rank: rank.memory),
        amount("left", lambda rank: rank.memory - rank.used),
        amount(f"for keys and values ({_share(plan.serving)})", lambda rank: rank.kv_bytes),
        row("bytes of them a token", lambda rank: f"{rank.kv_bytes_per_token:,}"),
        row("tokens", lambda rank: f"{rank.kv_tokens:,}"),
    ]


def _share(serving: Serving) -> str:
    """Return by which rule keys and values get what they get."""
    return f"memory x {serving.memory_fraction:g} - used" if serving.shares_all else f"x {serving.memory_fraction:g}"


def _alike(ranks: Sequence[RankMemory]) -> list[range]:
    """Return runs of pipeline ranks that differ in nothing but which layers they have."""
    changes = [
        index
        for index, (before, rank) in enumerate(pairwise(ranks), start=1)
        if replace(rank, layers=before.layers) != before
    ]
    return [range(start, stop) for start, stop in pairwise([0, *changes, len(ranks)])]


def _span(indices: range) -> str:
    return str(indices.start) if len(indices) == 1 else f"{indices.start}-{indices.stop - 1}"


def _conclusion(plan: ServingPlan) -> str:
    if plan.fits:
        return f"It fits: {_room(plan)}."
    lacking = max(rank.used - rank.memory for rank in plan.ranks)
    if lacking > 0:
        return f"It does not fit: {lacking / GB:.3f} GB too much on a device, before any keys and values."
    asked = f"a request of {plan.serving.max_length:,} takes {plan.serving.sequence_tokens:,}"
    return f"It does not fit: there is room for {plan.kv_tokens:,} tokens of keys and values, and {asked}."


def _advice(report: Report) -> list[str]:
    if report.plan.fits:
        return []
    if not report.changes:
        return ["  Nothing that the manifest may say makes it fit: take devices with more memory."]
    return [f"  write {written(change.fields)}: then {_room(change.plan)}" for change in report.changes]


def _room(plan: ServingPlan) -> str:
    requests = count(plan.sequences, "request")
    return f"{plan.kv_tokens:,} tokens of keys and values, {requests} of {plan.serving.max_length:,} tokens at once"


def _limits(plan: ServingPlan) -> list[str]:
    length = plan.serving.max_length
    empty, full = plan.tokens_per_second_limit(), plan.tokens_per_second_limit(length)
    if not plan.fits or empty is None or full is None or plan.device.bandwidth is None:
        return []
    read = sum(rank.read(1) for rank in plan.ranks) / GB
    return [
        f"One request alone gets at most {empty:,.0f} tokens/s, {full:,.0f} after {length:,} tokens: "
        "a limit, no measurement.",
        f"  A token reads {read:.3f} GB of weights on one device of each rank, rank after rank, "
        f"at {plan.device.bandwidth / GB:,.1f} GB/s.",
    ]


def _batches(plan: ServingPlan) -> list[Decoding]:
    """Return steps of ever more requests of the greatest length, as many as have room."""
    most = min(plan.serving.max_sequences, plan.sequences)
    sizes = [*(4**power for power in range(10) if 4**power < most), most]
    steps = (decode(plan, size, plan.serving.max_length) for size in sizes)
    return [step for step in steps if step is not None]


def _batch_rows(report: Report, steps: list[Decoding]) -> list[list[str]]:
    plan = report.plan
    rows = [
        [f"requests at once, of {plan.serving.max_length:,} tokens", *(f"{step.batch:,}" for step in steps)],
        ["tokens/s of the group, at most", *(f"{step.tokens_per_second:,.0f}" for step in steps)],
        ["ms between a request's tokens", *(f"{step.seconds * 1e3:,.2f}" for step in steps)],
        ["  of them between ranks", *(f"{step.lines * 1e3:,.2f}" for step in steps)],
        ["bound by", *(step.bound for step in steps)],
    ]
    if report.costs is not None:
        rows.append(["tokens/s, by measured costs", *(_predicted(plan, report.costs, step) for step in steps)])
    if report.price is not None:
        costs = (step.cost(plan.devices, report.price) for step in steps)
        rows.append([f"US dollars a million tokens, at {report.price:g} an hour", *(f"{cost:,.3f}" for cost in costs)])
    return rows


def _predicted(plan: ServingPlan, costs: ServingCosts, step: Decoding) -> str:
    context = min(plan.serving.max_length, plan.serving.visible or plan.serving.max_length)
    return f"{step.batch / seconds(plan.serving.config, decoding_step(step.batch, context), costs):,.0f}"


def _turning_point(plan: ServingPlan) -> list[str]:
    first = compute_bound_from(plan, 0)
    return [] if first is None else [f"Of short requests, arithmetic binds from {first:,} at once on, memory before."]


def _target(report: Report) -> list[str]:
    if report.target is None:
        return []
    plan, length = report.plan, report.plan.serving.max_length
    words = f"Within {report.target * 1e3:g} ms between tokens"
    own = most_within(plan, length, report.target)
    lines = [
        f"{words}: at most {count(own.batch, 'request')} of {length:,} tokens."
        if own
        else f"{words}: not even one request."
    ]
    if report.best is not None and report.best[0].devices != plan.devices:
        best, step = report.best
        lines.append(
            f"  Most of each device gives tensor {best.serving.tensor} x pipeline {best.serving.pipeline}: "
            f"{count(step.batch, 'request')}, {step.tokens_per_second / best.devices:,.0f} tokens/s a device."
        )
    return lines


def _device_rows(report: Report) -> list[list[str]]:
    rows = [["the same group on", "fits", "tokens of keys and values", "limit of one request, tokens/s"]]
    for plan in report.others.values():
        limit = plan.tokens_per_second_limit()
        fits = "yes" if plan.fits else "no"
        rows.append([plan.device.title, fits, f"{plan.kv_tokens:,}", f"{limit:,.0f}" if plan.fits and limit else "-"])
    return rows


def render_json(report: Report) -> str:
    """Return a report for programs: sizes in bytes, rates a second."""
    plan, serving, device = report.plan, report.plan.serving, report.plan.device
    parameters = count_parameters(serving.config)
    content = {
        "name": report.name,
        "model": {"source": report.source, "parameters": parameters.total, "activeParameters": parameters.active},
        "engine": report.engine,
        "device": {
            "title": device.title,
            "memory": device.memory,
            "bandwidth": device.bandwidth,
            "bf16Flops": device.bf16_flops,
            "fp8Flops": device.fp8_flops,
            "perNode": device.per_node,
        },
        "group": {
            "tensor": report.tensor,
            "pipeline": serving.pipeline,
            "nodes": serving.pipeline,
            "devices": plan.devices,
        },
        "replicas": report.replicas,
        "ranks": [_rank_json(rank) for rank in plan.ranks],
        **_outcome_json(plan),
        "changes": [{"fields": change.fields, **_outcome_json(change.plan)} for change in report.changes],
        "otherDevices": {name: _outcome_json(other) for name, other in report.others.items()},
        "batches": [
            {**asdict(step), "tokensPerSecondLimit": step.tokens_per_second}
            for step in (_batches(plan) if plan.fits else [])
        ],
        "notes": report.notes,
    }
    return json.dumps(content, indent=2)


def _rank_json(rank: RankMemory) -> dict[str, Any]:
    return {
        "layers": [rank.layers.start, rank.layers.stop - 1],
        "weights": {part: rank.weights[part] for part in PARTS if rank.weights[part]},
        "scales": rank.scales.total(),
        "activations": rank.activations,
        "runtime": rank.runtime,
        "memory": rank.memory,
        "left": rank.memory - rank.used,
        "kvBytes": rank.kv_bytes,
        "kvBytesPerToken": rank.kv_bytes_per_token,
        "kvTokens": rank.kv_tokens,
    }


def _outcome_json(plan: ServingPlan) -> dict[str, Any]:
    return {
        "fits": plan.fits,
        "kvTokens": plan.kv_tokens,
        "maxLength": plan.serving.max_length,
        "sequences": plan.sequences,
        "tokensPerSecondLimit": plan.tokens_per_second_limit(),
        "tokensPerSecondLimitAtMaxLength": plan.tokens_per_second_limit(plan.serving.max_length),
    }
