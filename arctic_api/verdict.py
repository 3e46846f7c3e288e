"""The verdict on a manifest, as the API server gives it under strict field validation, plus what only we can say.

Pure, on plain dictionaries: `arctic` asks it before it starts local processes, and the operator asks it for the
problems that the API server lets pass (`Judge.OPERATOR`) and for the exact names in its conditions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from arctic_api import API_VERSION
from arctic_api.common import HINTS, Manifest, Resource
from arctic_api.crd import KINDS, Schema, schema_of
from arctic_api.rules import rules_of

MAX_DEPTH = 100
"""Levels of objects and lists in a specification."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of a manifest, and what to write."""

    field: str
    message: str

    def __str__(self) -> str:
        """Return the problem as one line for people."""
        return f"{self.field}: {self.message}"


def verdict(manifest: dict[str, Any], old: dict[str, Any] | None = None) -> list[Problem]:
    """Return the problems of a manifest, none if it is right; `old` is the object that it would replace.

    The rules are tried only on a manifest whose fields are right, as the API server does.
    """
    read = _read(manifest)
    if isinstance(read, list):
        return read
    before = _parse(old, type(read)) if old is not None else None
    return list(_rule_problems(read, None if isinstance(before, list) else before, ""))


def field_problems(manifest: dict[str, Any]) -> list[Problem]:
    """Return the problems of a manifest's fields alone: of one that was judged before, by other rules perhaps."""
    read = _read(manifest)
    return read if isinstance(read, list) else []


def _read(manifest: dict[str, Any]) -> Manifest | list[Problem]:
    """Return a manifest of one of our kinds as its type, or why it is none."""
    if problems := _identity_problems(manifest) + _depth_problems(manifest.get("spec")):
        return problems
    return _parse(manifest, KINDS[manifest["kind"]].model)


def _identity_problems(manifest: dict[str, Any]) -> list[Problem]:
    problems = []
    if manifest.get("apiVersion") != API_VERSION:
        problems.append(Problem("apiVersion", f"write {API_VERSION}"))
    if manifest.get("kind") not in list(KINDS):
        problems.append(Problem("kind", f"write {' or '.join(KINDS)}{_did_you_mean(manifest.get('kind'), KINDS)}"))
    return problems


def _depth_problems(spec: Any) -> list[Problem]:
    """Refuse what the API server takes, and whoever goes through it by recursion does not."""
    level = [spec]
    for _ in range(MAX_DEPTH):
        if not level:  # most end soon
            return []
        level = [child for node in level for child in _children(node)]
    return [Problem("spec", f"is nested too deeply: write at most {MAX_DEPTH} levels")] if level else []


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def settle(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest as the API server reads it: without the fields that are null, and without a status.

    The kind must be one of ours.
    """
    content = {key: value for key, value in manifest.items() if key != "status"}
    settled: dict[str, Any] = _settle(content, schema_of(KINDS[manifest["kind"]].model))
    return settled


def _settle(value: Any, schema: Schema) -> Any:
    if isinstance(value, list):
        return [_settle(item, schema.get("items", {})) for item in value]
    if isinstance(value, dict):
        children = {key: _child(schema, key) for key in value}
        return {
            key: _settle(item, children[key] or {})
            for key, item in value.items()
            if item is not None or children[key] is None
        }
    whole = schema.get("type") == "integer" and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _parse(manifest: dict[str, Any], model: type[Manifest]) -> Manifest | list[Problem]:
    """Return the manifest as its type, or why it is none."""
    schema, content = schema_of(model), settle(manifest)
    problems = list(_doubled(content, schema, ""))
    try:
        parsed = model.model_validate(content, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        return problems + [_explain(details, content, schema) for details in error.errors(include_url=False)]
    return problems or parsed


def _child(schema: Schema, key: str) -> Schema | None:
    child: Schema | None = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return child


def _join(field: str, key: str, schema: Schema) -> str:
    if "additionalProperties" in schema:
        return f"{field}[{key}]"
    return f"{field}.{key}" if field else key


def _doubled(value: Any, schema: Schema, field: str) -> Iterator[Problem]:
    """Yield the items that a list with keys, or a set, has twice."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _doubled(item, _child(schema, key) or {}, _join(field, key, schema))
    elif isinstance(value, list):
        identities = [_identity(item, schema) for item in value]
        for index, identity in enumerate(identities):
            if identity is not None and identity in identities[:index]:
                what = ", ".join(map(repr, identity))
                yield Problem(f"{field}[{index}]", f"{what} is there twice: write each one once")
        for index, item in enumerate(value):
            yield from _doubled(item, schema.get("items", {}), f"{field}[{index}]")


def _identity(item: Any, schema: Schema) -> list[Any] | None:
    """Return what tells an item of a list from the others, None if they may be alike."""
    if schema.get("x-kubernetes-list-type") == "set":
        return [item]
    keys = schema.get("x-kubernetes-list-map-keys", [])
    return [item.get(key) for key in keys] if keys and isinstance(item, dict) else None


def _explain(details: ErrorDetails, content: Any, schema: Schema) -> Problem:
    """Return a pydantic error as a problem: its field as Kubernetes writes it, its message as what to write."""
    field, value, node, parent = "", content, schema, schema
    for step in details["loc"]:
        if isinstance(value, list) and isinstance(step, int):
            field, value, parent, node = f"{field}[{step}]", value[step], node, node.get("items", {})
        elif isinstance(value, dict) and isinstance(step, str):
            field, value, parent, node = _join(field, step, node), value.get(step), node, _child(node, step) or {}
        else:
            break
    return Problem(field, _sentence(details, node, list(parent.get("properties", {}))))


_WANTED = {
    "int_type": "write a whole number",
    "float_type": "write a number",
    "bool_type": "write true or false",
    "string_type": "write text: a number or a boolean needs quotes here",
    "list_type": "write a list",
    "dict_type": "write an object",
    "model_type": "write an object",
    "missing": "is required",
}


def _sentence(details: ErrorDetails, node: Schema, siblings: list[str]) -> str:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        return f"unknown field{_did_you_mean(details['loc'][-1], siblings)}"
    if kind == "literal_error":
        choices = [str(choice) for choice in node["enum"]]
        return f"unknown value {value!r}: write one of {', '.join(choices)}{_did_you_mean(value, choices)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return f"{value!r} does not fit: {HINTS[context['pattern']]}"
    return _WANTED.get(kind) or details["msg"].replace("Input should be", "must be")


def _did_you_mean(word: Any, choices: Any) -> str:
    lowered = {choice.lower(): choice for choice in choices}
    close = get_close_matches(str(word).lower(), list(lowered), n=1)
    return f"; did you mean {lowered[close[0]]}?" if close else ""


def _rule_problems(node: Resource, old: Resource | None, field: str) -> Iterator[Problem]:
    for rule in rules_of(type(node)):
        if rule.transition and old is None:
            continue
        if not (rule.predicate(node, old) if rule.transition else rule.predicate(node)):
            message = rule.detail(node) if rule.detail else rule.message
            place = (field + rule.field_path).lstrip(".")
            yield Problem(place or "metadata.name", message)  # of the root, CEL sees the name alone
    for name, info in type(node).model_fields.items():
        path = ".".join(filter(None, [field, info.alias or name]))
        value = getattr(node, name)
        if isinstance(value, Resource):
            before = getattr(old, name, None)
            yield from _rule_problems(value, before, path)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Resource):
                    yield from _rule_problems(item, None, f"{path}[{index}]")
