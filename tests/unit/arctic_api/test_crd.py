"""The CRDs that are derived from the types."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from generated_manifests import right_manifests
from hypothesis import HealthCheck, given, settings

from arctic_api.crd import KINDS, Kind, Schema, crd, schema_of
from arctic_api.rules import RULES

KIND_LIST = list(KINDS.values())
STRUCTURAL = {
    "type",
    "description",
    "default",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "format",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
}

every_kind = pytest.mark.parametrize("kind", KIND_LIST, ids=[kind.name for kind in KIND_LIST])


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from nodes(schema[inner], f"{path}[]")


def at(schema: Schema, path: str) -> Schema:
    for step in path.strip(".").split("."):
        schema = schema["properties"][step]
    return schema


@every_kind
def test_the_schema_is_structural(kind: Kind) -> None:
    for path, node in nodes(schema_of(kind.model)):
        assert set(node) <= STRUCTURAL, path
        untyped = "x-kubernetes-int-or-string" in node or node.get("x-kubernetes-preserve-unknown-fields", False)
        assert "type" in node or untyped, path
        assert not ("type" in node and "x-kubernetes-int-or-string" in node), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert isinstance(node.get("exclusiveMinimum", True), bool), path


@every_kind
def test_every_field_says_what_it_means(kind: Kind) -> None:
    top = schema_of(kind.model)["properties"]
    silent = [
        path
        for part in ("spec", "status")
        for path, node in nodes(top[part], part)
        if not path.endswith("[]") and not re.search(r"\w.*\.", node.get("description", ""))
    ]
    assert silent == []


@every_kind
def test_a_default_is_told_beside_the_meaning(kind: Kind) -> None:
    for path, node in nodes(schema_of(kind.model)):
        if "default" in node and not isinstance(node["default"], dict):
            assert " Default: " in node["description"], path


@every_kind
def test_rules_stand_at_nodes_that_have_their_field(kind: Kind) -> None:
    for _, node in nodes(schema_of(kind.model)):
        for rule in node.get("x-kubernetes-validations", []):
            if "fieldPath" in rule:
                assert at(node, rule["fieldPath"])


def test_every_rule_in_cel_stands_somewhere() -> None:
    asked = {(rule.cel, rule.message) for rule in RULES if isinstance(rule.cel, str)}
    found = set()
    for kind in KIND_LIST:
        for path, node in nodes(schema_of(kind.model)):
            for rule in node.get("x-kubernetes-validations", []):
                # As it was asked for, or from the object above.
                above = rule["rule"].replace("self.", f"self.{path.rpartition('.')[2]}.")
                known = {(cel, rule["message"]) for cel in (rule["rule"], above)} & asked
                assert known, path
                found |= known
    assert found == asked


def test_rules_of_one_object_stand_there_with_the_same_field_at_fault() -> None:
    spec = at(schema_of(KINDS["ArcticInference"].model), ".spec")
    message = "block_size is no option of engine native: leave it out"
    assert [rule for rule in spec["x-kubernetes-validations"] if "options" in rule["rule"]] == []
    assert [rule for rule in at(spec, ".engine")["x-kubernetes-validations"] if rule["message"] == message] == [
        {
            "rule": "self.name != 'native' || !has(self.options) || !has(self.options.block_size)",
            "message": message,
            "fieldPath": ".options.block_size",
        }
    ]
    # What may be absent has no rule of its own that would say so, and two objects have one above both.
    rules = [rule["rule"] for rule in spec["x-kubernetes-validations"]]
    assert "self.engine.name != 'vllm' || !has(self.attention.window)" in rules


@every_kind
def test_columns_and_scale_point_at_fields(kind: Kind) -> None:
    version = crd(kind)["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    scale = version["subresources"].get("scale", {})
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"]] + list(scale.values())
    for path in paths:
        assert path == ".metadata.creationTimestamp" or at(schema, path), path


def test_inference_scales_and_counts_its_leaders() -> None:
    subresources = crd(KINDS["ArcticInference"])["spec"]["versions"][0]["subresources"]
    assert subresources["scale"]["labelSelectorPath"] == ".status.selector"
    assert at(schema_of(KINDS["ArcticInference"].model), ".spec.replicas")["default"] == 1


def test_conditions_merge_by_their_type() -> None:
    for kind in KIND_LIST:
        conditions = at(schema_of(kind.model), ".status.conditions")
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]
        assert "type" in conditions["items"]["required"]


def with_defaults(value: Any, schema: Schema) -> Any:
    """Fill in the defaults as the API server does: those of a field before those of its own fields."""
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    defaults = {name: copy.deepcopy(field["default"]) for name, field in fields.items() if "default" in field}
    return {name: with_defaults(item, fields.get(name, {})) for name, item in {**defaults, **value}.items()}


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(manifest=right_manifests)
def test_the_api_servers_defaults_are_those_of_the_types(manifest: dict[str, Any]) -> None:
    model = KINDS[manifest["kind"]].model
    assert model.model_validate(with_defaults(manifest, schema_of(model))) == model.model_validate(manifest)
    stored = model.model_validate(manifest).wire()
    defaulted = with_defaults(manifest, schema_of(model))
    assert stored == defaulted
