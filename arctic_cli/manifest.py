"""Manifests as files: YAML 1.2 with several documents, read as kubectl reads it, with the line of every field.

kubectl (sigs.k8s.io/yaml, a fork of go-yaml v2) takes some plain scalars otherwise than YAML 1.2 does: `on` is true,
`0777` is octal, `1_000` is a number. A manifest must mean the same to both, so that is what is done here.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from arctic_api import GROUP
from arctic_api.crd import KINDS
from arctic_api.verdict import Problem, settle, verdict
from arctic_api.world import ExitCode

_TRUE = {"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"}
_FALSE = {"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"}
_NULL = {"", "~", "null", "Null", "NULL"}
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PREFIX = "tag:yaml.org,2002:"
_JSON_PLAIN = 1e21  # from here on Go writes a float with an exponent, which is then never an integer


class ManifestError(click.ClickException):
    """A manifest that can't be used; the message has a line for each problem."""

    exit_code = ExitCode.BAD_INPUT


@dataclass
class Document:
    """One manifest of a file."""

    content: dict[str, Any]
    line: int
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each field, from 1, by its path as in `spec.curriculum.stages[0].tokens`."""

    @property
    def ours(self) -> bool:
        """Whether it is of our group, or means to be."""
        group = str(self.content.get("apiVersion", GROUP)).partition("/")[0]
        return group == GROUP or self.content.get("kind") in list(KINDS)

    def line_of(self, path: str) -> int:
        """Return the line of a field, or of the nearest one around it that is there."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, self.line)

    def problems(self) -> list[Problem]:
        """Return the verdict on it."""
        return verdict(self.content)


def load(file: Path) -> list[Document]:
    """Return the documents of a file, or of the standard input for `-`; ManifestError names the file and the line.

    Empty documents are left out, and lists are their items, as `kubectl get -o yaml` writes them.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _KubectlResolver
    try:
        with click.open_file(str(file), encoding="utf-8") as stream:
            nodes = [node for node in yaml.compose_all(stream) if node is not None]
        return [document for node in nodes if _value_tag(node) != "null" for document in _documents(file, node)]
    except RecursionError:
        raise ManifestError(f"{file}: is nested too deeply to be read: write fewer levels") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ManifestError(
            f"{file}:{mark.line + 1 if mark else 1}: not YAML: {error.problem or error.context}"
        ) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{file}: not YAML: {error}") from error
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror}") from error


def _documents(file: Path, node: Node) -> Iterator[Document]:
    document = _Reader(file).document(node)
    if not (str(document.content.get("kind")).endswith("List") and isinstance(document.content.get("items"), list)):
        yield document
        return
    for key, items in node.value:
        if key.value == "items":
            for item in items.value:
                yield from _documents(file, item)


def load_one(file: Path, kind: str) -> dict[str, Any]:
    """Return the one manifest of a kind in a file; ManifestError if there is another number of them, or it is wrong."""
    found = [document for document in load(file) if document.content.get("kind") == kind]
    if len(found) != 1:
        raise ManifestError(f"{file}: has {len(found)} manifests of the kind {kind}: write exactly one")
    if problems := found[0].problems():
        raise ManifestError("\n".join(describe(file, found[0], problem) for problem in problems))
    return settle(found[0].content)


def describe(file: Path, document: Document, problem: Problem) -> str:
    """Return a problem as a line for people: file, line, field, what to write."""
    return f"{file}:{document.line_of(problem.field)}: {problem}"


class _KubectlResolver(VersionedResolver):
    """Says which type a plain scalar has, as kubectl does."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Tag:
        """Return the tag of a node that has none of its own."""
        if kind is not ScalarNode:
            return self.DEFAULT_SEQUENCE_TAG if kind is SequenceNode else self.DEFAULT_MAPPING_TAG
        return Tag(suffix=_PREFIX + (_plain_type(value) if implicit[0] else "str"))


def _plain_type(text: str) -> str:
    if text in _TRUE or text in _FALSE:
        return "bool"
    if text in _NULL:
        return "null"
    number = text.replace("_", "")
    if _INFINITE.fullmatch(text):
        return "float"
    if text[0] == "." or text[0] not in "+-0123456789":
        return "float" if text[0] == "." and _FLOAT.fullmatch(text) else "str"
    if _INTEGER.fullmatch(number) and abs(_whole(number)) < 2**64:
        return "int"
    return "float" if _FLOAT.fullmatch(number) and math.isfinite(float(number)) else "str"


def _whole(text: str) -> int:
    match = _INTEGER.fullmatch(text)
    assert match is not None
    digits = match[2].lower()
    if re.fullmatch("0[0-7]+", digits):
        digits = "0o" + digits[1:]
    return int(match[1] + digits, 0)


def _json_number(value: int | float) -> int | float:
    """Return a number as Go writes it in JSON, shortest digits first, and reads it again: whole if 64 bits hold it."""
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= _JSON_PLAIN:
            return value
        value = int(Decimal(repr(value)))
    return value if -(2**63) <= value < 2**63 else float(value)


def _value_tag(node: Node) -> str:
    return str(node.tag).removeprefix(_PREFIX)


class _Reader:
    """Makes values of nodes, and notes the line of each field."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: dict[str, int] = {}
        self._open: list[Node] = []

    def document(self, node: Node) -> Document:
        """Return the document whose root is `node`."""
        content = self._value(node, "")
        if not isinstance(content, dict):
            raise self._error(node, "not a manifest: write an object with apiVersion, kind, metadata and spec")
        return Document(content, node.start_mark.line + 1, self._lines)

    def _error(self, node: Node, message: str) -> ManifestError:
        return ManifestError(f"{self._file}:{node.start_mark.line + 1}: {message}")

    def _value(self, node: Node, path: str) -> Any:
        if node in self._open:
            raise self._error(node, "an alias stands within its own anchor")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        self._open.append(node)
        value = self._mapping(node, path) if isinstance(node, MappingNode) else self._sequence(node, path)
        self._open.pop()
        return value

    def _sequence(self, node: Node, path: str) -> list[Any]:
        items = []
        for index, child in enumerate(node.value):
            self._lines[f"{path}[{index}]"] = child.start_mark.line + 1
            items.append(self._value(child, f"{path}[{index}]"))
        return items

    def _mapping(self, node: MappingNode, path: str) -> dict[str, Any]:
        content: dict[str, Any] = {}
        written = set()
        for key_node, child in node.value:
            if _is_merge(key_node):
                content |= self._merged(child, path)
                continue
            key = self._key(key_node)
            if key in written:
                raise self._error(key_node, f"the field {key!r} is there twice: write it once")
            written.add(key)
            for place in (f"{path}.{key}" if path else key, f"{path}[{key}]"):  # as of an object, and as of a map
                self._lines[place] = key_node.start_mark.line + 1
            content[key] = self._value(child, f"{path}.{key}" if path else key)
        return content

    def _merged(self, node: Node, path: str) -> dict[str, Any]:
        maps = list(reversed(node.value)) if isinstance(node, SequenceNode) else [node]
        content: dict[str, Any] = {}
        for each in maps:
            if not isinstance(each, MappingNode):
                raise self._error(node, "`<<` merges objects: write an alias of an object")
            content |= self._mapping(each, path)
        return content

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._error(node, "a field's name must be text")
        value = self._scalar(node)
        if value is None:
            raise self._error(node, "a field's name must be text")
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _scalar(self, node: ScalarNode) -> Any:
        text = node.value
        match _value_tag(node):
            case "str":
                return text
            case "null":
                return None
            case "bool" if text in _TRUE or text in _FALSE:
                return text in _TRUE
            case "int" if _INTEGER.fullmatch(text.replace("_", "")):
                return _json_number(_whole(text.replace("_", "")))
            case "float" if _FLOAT.fullmatch(text.replace("_", "")):
                return _json_number(float(text.replace("_", "")))
            case "float" if _INFINITE.fullmatch(text):
                raise self._error(node, f"{text} has no place in JSON: write a finite number")
        raise self._error(node, f"{text!r} can't be read with the tag {node.tag}: leave the tag out")


def _is_merge(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "<<" and node.style is None
