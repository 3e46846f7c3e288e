"""Hypothesis strategies from the schemas of our resources: each field is right, whatever the rules say."""

from typing import Any

from hypothesis import strategies as st

from arctic_api import API_VERSION
from arctic_api.crd import KINDS, Schema, schema_of

MOST = 3
"""Items of a list, and of an object with free names."""
LONGEST = 40
"""Characters of a text; longer ones only say the same again."""
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab.-/ \n", max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)


def values_of(schema: Schema) -> st.SearchStrategy[Any]:
    """What the API server's schema lets stand at a node."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return st.dictionaries(st.text("ab_", min_size=1, max_size=3), anything, max_size=MOST)
    if schema.get("x-kubernetes-int-or-string"):
        return st.integers(0, 10**6) | _texts(schema)
    match schema.get("type"):
        case "object" if "properties" in schema:
            return _objects(schema)
        case "object":
            names = st.text("ab/.-", min_size=1, max_size=4)
            least = schema.get("minProperties", 0)
            return st.dictionaries(names, values_of(schema["additionalProperties"]), min_size=least, max_size=MOST)
        case "array":
            return _lists(schema)
        case "integer":
            return st.integers(schema.get("minimum", -10), min(schema.get("maximum", 10), 10**6))
        case "number":
            exclusive = {key: schema.get(f"exclusive{key[-3:].capitalize()}imum", False) for key in ("min", "max")}
            return st.floats(
                schema.get("minimum", -2),
                schema.get("maximum", 1000),
                exclude_min=exclusive["min"],
                exclude_max=exclusive["max"],
                width=32,
            )
        case "boolean":
            return st.booleans()
    return _texts(schema)


def _texts(schema: Schema) -> st.SearchStrategy[str]:
    least, most = schema.get("minLength", 0), min(schema.get("maxLength", LONGEST), LONGEST)
    if "pattern" in schema:
        inner = schema["pattern"].removeprefix("^").removesuffix("$")
        return st.from_regex(f"(?:{inner})", fullmatch=True, alphabet=st.characters(max_codepoint=127)).filter(
            lambda text: least <= len(text) <= most
        )
    return st.text("ab/:.-é\n", min_size=least, max_size=most)


def _lists(schema: Schema) -> st.SearchStrategy[list[Any]]:
    items, keys = values_of(schema["items"]), schema.get("x-kubernetes-list-map-keys")

    def identity(item: Any) -> str:
        return repr([item.get(key) for key in keys] if keys else item)

    unique = identity if keys or schema.get("x-kubernetes-list-type") == "set" else None
    least = schema.get("minItems", 0)
    return st.lists(items, min_size=least, max_size=max(MOST, least), unique_by=unique)


def _objects(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: values_of(child) for name, child in schema["properties"].items()}
    required = {name: fields[name] for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional={n: field for n, field in fields.items() if n not in required})


def _manifests(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    spec = values_of(schema_of(KINDS[kind].model)["properties"]["spec"])
    named = st.just({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "tiny"}})
    return st.builds(lambda head, spec: head | {"spec": spec}, named, spec)


schema_manifests = st.one_of([_manifests(name) for name in KINDS])
