"""The options that a manifest may set, against vLLM's own arguments of the release in this environment."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import TypeAdapter
from vllm import AsyncEngineArgs
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from arctic_api.engine_options import OPTIONS_OF, EngineOptions

TYPES = {field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}


def values(option: str) -> list[Any]:
    """Values that our own type takes: all of an enumeration, one of a kind else."""
    kinds = [kind for kind in get_args(EngineOptions.model_fields[option].annotation) if kind is not type(None)]
    found: list[Any] = []
    for kind in kinds:
        plain = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
        found += get_args(plain) if get_origin(plain) is Literal else {bool: [True], int: [1], float: [0.5]}[plain]
    return found


@pytest.mark.parametrize("option", OPTIONS_OF["vllm"])
def test_vllm_has_the_option_and_takes_what_we_take(option: str) -> None:
    taken = values(option)
    assert taken
    for value in taken:
        if option == "attention_backend":
            assert AttentionBackendEnum[value].name == value
        else:
            TypeAdapter(TYPES[option]).validate_python(value, strict=option != "optimization_level")
