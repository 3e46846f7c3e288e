"""The variants of a training, and each of their trainings as a manifest's specification."""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arctic_api import API_VERSION
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.common import parse_tokens
from arctic_api.training import KIND, ArcticTrainingSpec, SuiteData

Wire = dict[str, Any]
"""A specification as a manifest has it."""

POINTS = 8
"""About how often a training is judged on its way."""
BASE = "base"
LONGEST_NAME = 160
"""Letters of a variant's name: a grid's values may be whole objects, and all names are in the status."""
_WITHOUT_EFFECT = (
    *("checkpoint", "restart", "tracking", "pricePerGPUHour", "expectedTokensPerSecond"),
    *("suspend", "paused", "suspendAt", "stopAfter"),
    *("startDeadline", "activeDeadline", "ttlAfterFinished", "queue", "priorityClassName", "image", "resources"),
    *("evaluation", "template"),
)
"""Fields that change nothing of what is learnt."""


class VariantError(ValueError):
    """A variant that can't be made; the message says which, and what to write."""


@dataclass(frozen=True)
class Variant:
    """What differs from the training, by the fields' paths."""

    name: str
    changes: tuple[tuple[str, Any], ...] = ()


def variants(spec: ArcticAblationSpec) -> list[Variant]:
    """Return the variants of a grid or a list of changes, in their order; `VariantError` if two are called alike."""
    found = list(_of_grid(spec) if spec.grid else _of_changes(spec))
    names = [variant.name for variant in found]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise VariantError(f"two variants are called {doubled[0]!r}: write each value, and each name, once")
    return found


def _of_grid(spec: ArcticAblationSpec) -> Iterator[Variant]:
    axes = spec.grid or []
    fields = [axis.field for axis in axes]
    labels = [[f"{_short(axis.field, fields)}={_label(value)}" for value in axis.values] for axis in axes]
    for places in itertools.product(*(range(len(axis.values)) for axis in axes)):
        parts = [label[place] for label, place in zip(labels, places, strict=True)]
        changes = tuple((axis.field, axis.values[place]) for axis, place in zip(axes, places, strict=True))
        yield Variant(_joined(parts), changes)


def _of_changes(spec: ArcticAblationSpec) -> Iterator[Variant]:
    yield Variant(BASE)
    for change in spec.changes or ():
        yield Variant(change.name, tuple((setting.field, setting.value) for setting in change.set))


def _short(field: str, fields: Sequence[str]) -> str:
    """Return the least of a path's end that no other one of some fields has."""
    steps = field.split(".")
    ends = (".".join(steps[-count:]) for count in range(1, len(steps)))
    return next((end for end in ends if sum(f".{each}".endswith(f".{end}") for each in fields) == 1), field)


def _joined(parts: Sequence[str]) -> str:
    """Return a name of some parts; of what is too long for it beginnings, with digits that tell them apart."""
    name, room = ", ".join(parts), LONGEST_NAME // len(parts) - len(", ")
    return name if len(name) <= LONGEST_NAME else ", ".join(_cut(part, room) for part in parts)


def _cut(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    return f"{text[: room - 8]}… {hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _label(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}:{_label(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def changed(training: Wire, changes: Sequence[tuple[str, Any]]) -> Wire:
    """Return a specification with fields set, or, by a null, unset; `VariantError` names a path that leads nowhere."""
    result = copy.deepcopy(training)
    for field, value in changes:
        *steps, last = field.split(".")
        node: Any = result
        for step in steps:
            node = _child(node, step, field)
        if not isinstance(node, dict):
            raise VariantError(f"{field}: {'.'.join(steps)} is no object that could have a field {last!r}")
        node[last] = copy.deepcopy(value)
        if value is None:
            del node[last]
    return result


def _child(node: Any, step: str, field: str) -> Any:
    if isinstance(node, list):
        named = [item for item in node if isinstance(item, dict) and item.get("name") == step]
        if not named:
            names = ", ".join(str(item.get("name")) for item in node if isinstance(item, dict))
            raise VariantError(f"{field}: nothing is called {step!r}: write one of {names}")
        return named[0]
    if not isinstance(node, dict):
        raise VariantError(f"{field}: there is nothing below {step!r}: write a path in the training")
    return node.setdefault(step, {})


def total_tokens(training: Wire) -> int:
    """Return the tokens of all stages."""
    return sum(parse_tokens(stage["tokens"]) for stage in training["curriculum"]["stages"])


def total_steps(training: Wire) -> int:
    """Return the steps of all stages."""
    usual = training["batch"]["tokensPerStep"]
    return sum(
        math.ceil(parse_tokens(stage["tokens"]) / max(1, parse_tokens(stage.get("tokensPerStep", usual))))
        for stage in training["curriculum"]["stages"]
    )


def trial(spec: ArcticAblationSpec, training: Wire, seed: int) -> Wire:
    """Return the specification of one training of an ablation: judged on its way, and with nothing exported.

    But an adapter alone is no model: suites judge what it exports, with the weights that it stands on.
    """
    made = changed(training, [("seed", seed)])
    made["evaluation"] = {"suites": ["perplexity"], "every": max(1, round(total_steps(made) / POINTS))}
    export = "huggingface" if spec.objective.suites and trains_adapter(made) else "none"
    made["checkpoint"] = made["checkpoint"] | {"export": export, "keep": 1}
    for field in ("suspend", "paused", "stopAfter", "suspendAt", "ttlAfterFinished"):
        made.pop(field, None)
    if spec.target is not None:
        made["data"] = made["data"] | {"simulatedTokens": spec.target.tokens}
    return made


def trains_adapter(training: Wire) -> bool:
    """Whether a training's checkpoints are of an adapter: suites judge it at its end alone, by its export."""
    return "adapter" in training["model"]


def training_manifest(name: str, specification: Wire) -> Wire:
    """Return the manifest of an ArcticTraining."""
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": specification}


def digest(spec: ArcticAblationSpec, training: Wire) -> str:
    """Return eight digits that depend on all that a training learns from, and on what it is judged by.

    What was judged otherwise is another training, as what it was before its end is not to be had again.

    What it does not draw from is left out: a source that was only added makes no other training.
    """
    # By way of the types, so that defaults which are written out are no difference.
    wire = ArcticTrainingSpec.model_validate(training).wire()
    kept = {name: value for name, value in wire.items() if name not in _WITHOUT_EFFECT}
    stages = [_without_zeros(stage) for stage in kept["curriculum"]["stages"]]
    drawn = {name for stage in stages for name in stage["mixture"]}
    judged = set(spec.objective.perplexity or ()) if "fraction" in kept["data"]["validation"] else set()
    sources = [each for each in kept["data"]["sources"] if each["name"] in drawn or each["category"] in judged]
    kept |= {"curriculum": {"stages": stages}, "data": kept["data"] | {"sources": sources}}
    kept["objective"] = spec.objective.wire() | {"data": [one.wire() for one in data_of_suites(spec)]}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def data_of_suites(spec: ArcticAblationSpec) -> list[SuiteData]:
    """Return the suites of the objective, with where their data are; none where it is of held-out text."""
    evaluation, suites = spec.training.evaluation, spec.objective.suites or {}
    return [one for one in (evaluation.data if evaluation else None) or () if one.name in suites]


def _without_zeros(stage: Wire) -> Wire:
    final = stage.get("finalMixture") or {}
    weights = {name: weight for name, weight in stage["mixture"].items() if weight or final.get(name)}
    return stage | {"mixture": weights}


def source_weights(training: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of all tokens that a curriculum takes from each source, by name."""
    totals: dict[str, float] = {source["name"]: 0.0 for source in training["data"]["sources"]}
    for stage in training["curriculum"]["stages"]:
        for mixture in (stage["mixture"], stage.get("finalMixture") or stage["mixture"]):
            for name, weight in mixture.items():
                totals[name] += parse_tokens(stage["tokens"]) * weight / sum(mixture.values()) / 2
    whole = sum(totals.values())
    return {name: total / whole for name, total in totals.items() if total > 0}


def validation_sources(training: Mapping[str, Any]) -> list[Wire]:
    """Return the sources that are only for validation; none where a share of the others is held out."""
    sources: list[Wire] = training["data"].get("validation", {}).get("sources", [])
    return sources


def held_out_categories(training: Mapping[str, Any]) -> set[str]:
    """Return the categories by which a training is judged, at each of its evaluations.

    They are those of the sources that are only for validation. Where there are none, those of the sources that any
    stage draws from: a share of each is held out, and no other is even read.
    """
    drawn = source_weights(training)
    trained_on = [source for source in training["data"]["sources"] if source["name"] in drawn]
    return {source["category"] for source in validation_sources(training) or trained_on}
