"""The CustomResourceDefinitions, derived from types and rules: pydantic's JSON schema made structural.

Pure: types in, dictionaries out. `python -m arctic_api.crd` prints them as JSON, which `kubectl apply -f -` reads.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from arctic_api import GROUP, VERSION, ablation, evaluation, inference, training
from arctic_api.common import Manifest
from arctic_api.rule import Rule
from arctic_api.rules import rules_of

Schema = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; with a priority above 0 only of `kubectl get -o wide`."""

    name: str
    path: str
    type: str = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Kind:
    """A resource: its type and the words by which `kubectl` knows it."""

    model: type[Manifest]
    name: str
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    scale: Schema | None = None


_STATE = Column("State", ".status.state", description="One word for people")
_AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS = {
    training.KIND: Kind(
        training.ArcticTraining,
        training.KIND,
        training.PLURAL,
        training.SHORT_NAME,
        (
            _STATE,
            Column("Stage", ".status.stage", description="Stage under way"),
            Column("Step", ".status.step", "integer", "Optimizer updates so far"),
            Column("Loss", ".status.loss", description="Training loss, nats a token"),
            Column("Tokens/s", ".status.tokensPerSecond", "integer", "Tokens trained a second"),
            Column("Attempt", ".status.attempt", "integer", "Number of the latest attempt", priority=1),
            _AGE,
        ),
    ),
    inference.KIND: Kind(
        inference.ArcticInference,
        inference.KIND,
        inference.PLURAL,
        inference.SHORT_NAME,
        (
            _STATE,
            Column("Ready", ".status.readyReplicas", "integer", "Groups that answer"),
            Column("Desired", ".status.desiredReplicas", "integer", "Groups asked for, by the manifest or autoscaling"),
            Column("Tokens/s", ".status.tokensPerSecond", "integer", "Tokens generated a second"),
            Column("URL", ".status.url", description="Stable address"),
            _AGE,
        ),
        {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    ),
    ablation.KIND: Kind(
        ablation.ArcticAblation,
        ablation.KIND,
        ablation.PLURAL,
        ablation.SHORT_NAME,
        (
            _STATE,
            Column("Planned", ".status.planned", "integer", "Trainings, if none is stopped early"),
            Column("Tokens", ".status.tokens", "integer", "Tokens trained so far"),
            Column("Best", ".status.best", description="Best variant so far"),
            _AGE,
        ),
    ),
    evaluation.KIND: Kind(
        evaluation.ArcticEvaluation,
        evaluation.KIND,
        evaluation.PLURAL,
        evaluation.SHORT_NAME,
        (
            _STATE,
            Column("Score", ".status.enterpriseIntelligence.value", description="Enterprise intelligence, 0 to 1"),
            Column("Folder", ".status.folder", description="Folder of the results", priority=1),
            _AGE,
        ),
    ),
}


class _Structural(GenerateJsonSchema):
    """pydantic's own generator, with the rules at the nodes of their types and without null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        validations = [_validation(rule) for rule in rules_of(schema["cls"]) if isinstance(rule.cel, str)]
        return super().model_schema(schema) | ({"x-kubernetes-validations": validations} if validations else {})


@cache
def schema_of(model: type[Manifest]) -> Schema:
    """Return the structural OpenAPI v3 schema of a resource; it is shared, so don't change it."""
    source = model.model_json_schema(schema_generator=_Structural)
    root = _structural(source, source["$defs"])
    root["properties"] |= {"metadata": {"type": "object"}, "apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    return _sink(root)


def _validation(rule: Rule) -> Schema:
    entry = {"rule": rule.cel, "message": rule.message}
    return entry | ({"fieldPath": rule.field_path} if rule.field_path else {})


def _sink(node: Schema) -> Schema:
    """Return a node with each rule at the deepest node that can say it.

    The API server tries all rules at each write of a status, and for each access to a field it copies the schemas of
    all fields beside it: fewest where a rule that speaks of one object stands there.
    """
    result, fields = dict(node), dict(node.get("properties", {}))
    kept = []
    for rule in node.get("x-kubernetes-validations", ()):
        name = _only_object(rule["rule"], fields, node.get("required", ()))
        if name is None or not rule.get("fieldPath", "").startswith(f".{name}"):
            kept.append(rule)
        else:
            below = {"rule": rule["rule"].replace(f"self.{name}.", "self."), "message": rule["message"]}
            place = rule["fieldPath"].removeprefix(f".{name}")
            below |= {"fieldPath": place} if place else {}
            fields[name] = fields[name] | {
                "x-kubernetes-validations": [*fields[name].get("x-kubernetes-validations", ()), below]
            }
    if "x-kubernetes-validations" in node:
        result["x-kubernetes-validations"] = kept
        if not kept:
            del result["x-kubernetes-validations"]
    if fields:
        result["properties"] = {name: _sink(child) for name, child in fields.items()}
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            result[inner] = _sink(node[inner])
    return result


def _only_object(cel: str, fields: Schema, required: Sequence[str]) -> str | None:
    """Return the field of which alone a rule speaks, if that is an object that is always there."""
    names = {match.group(1) for match in re.finditer(r"\bself\b(?:\.(\w+)(?=\.))?", cel)}
    if len(names) != 1 or "oldSelf" in cel:
        return None
    name: str | None = names.pop()
    child = fields.get(name or "", {})
    return name if "properties" in child and (name in required or "default" in child) else None


def _structural(node: Schema, types: Schema) -> Schema:
    """Return a node of a JSON schema as a node of a structural one: references inlined, OpenAPI 3.0's own words."""
    if reference := node.get("$ref"):
        node = types[reference.removeprefix("#/$defs/")] | {key: node[key] for key in node if key != "$ref"}
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in node:
        result["enum"] = [node["const"]]
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if exclusive in node:
            result |= {bound: node[exclusive], exclusive: True}
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], types)
    if "items" in node:
        result["items"] = _structural(node["items"], types)
    if "properties" in node:
        result["properties"] = {name: _structural(child, types) for name, child in node["properties"].items()}
    result |= _default(node, result)
    return {key: result[key] for key in (*_FIRST, *result) if key in result}


_FIRST = ("type", "description", "default")
_DROPPED = (
    "$defs",
    "title",
    "const",
    "anyOf",
    "additionalProperties",
    "default",
    "exclusiveMinimum",
    "exclusiveMaximum",
)


def _default(node: Schema, structural: Schema) -> Schema:
    """Return the default, as the API server needs it and as `kubectl explain` tells it."""
    if node.get("default") is None:
        return {}
    default = _without_null(node["default"])  # whole, as rules are tried on it before the defaults of its fields
    told = _told(default, structural)
    if told == {}:
        return {"default": default}
    text = told if told and isinstance(told, str) else json.dumps(told)
    return {"default": default, "description": f"{node['description']} Default: {text}."}


def _without_null(default: Any) -> Any:
    if not isinstance(default, dict):
        return default
    return {key: _without_null(value) for key, value in default.items() if value is not None}


def _told(default: Any, structural: Schema) -> Any:
    """Return a default without what the defaults of its own fields say already."""
    if not isinstance(default, dict):
        return default
    fields = structural["properties"]
    return {key: value for key, value in default.items() if value != fields[key].get("default")}


def crd(kind: Kind) -> Schema:
    """Return the CustomResourceDefinition of a kind."""
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "subresources": {"status": {}} | ({"scale": kind.scale} if kind.scale else {}),
        "schema": {"openAPIV3Schema": schema_of(kind.model)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "annotations": {"helm.sh/resource-policy": "keep"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": ["arctic"],
            },
            "versions": [version],
        },
    }


def _column(column: Column) -> Schema:
    entry: Schema = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        entry["description"] = column.description
    if column.priority:
        entry["priority"] = column.priority
    return entry


if __name__ == "__main__":
    definitions = [crd(kind) for kind in KINDS.values()]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": definitions}, indent=2))
