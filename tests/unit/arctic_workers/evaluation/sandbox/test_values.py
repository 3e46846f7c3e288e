"""What travels between processes that do not trust each other."""

import json
import math
import os
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_workers.evaluation.sandbox.programs.values import NotPlainError, decode, encode, receive, type_name

HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=4)
    | st.floats(allow_nan=False)
    | st.binary(max_size=4),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
PLAIN = st.recursive(
    HASHABLE
    | st.sets(HASHABLE, max_size=3)
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3) | st.tuples(inner),
    max_leaves=8,
)


@settings(max_examples=100)
@given(PLAIN)
def test_plain_data_come_back_as_they_were(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_rare_numbers_come_back_too() -> None:
    assert decode(json.loads(json.dumps(encode(10**5000)))) == 10**5000
    for value in (-(2**53), Fraction(1, 3), Decimal("1.10"), range(1, 9, 2), math.inf, -0.0):
        assert repr(decode(json.loads(json.dumps(encode(value))))) == repr(value)
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize(
    ("value", "plain", "name"),
    [
        (Counter("aab"), {"a": 2, "b": 1}, "collections.Counter"),
        (OrderedDict(a=1), {"a": 1}, "collections.OrderedDict"),
        (namedtuple("P", "x y")(1, 2), (1, 2), "test_values.P"),
        (np.float64(0.5), 0.5, "numpy.float64"),
        (np.int64(7), 7, "numpy.int64"),
    ],
)
def test_derived_types_travel_as_their_base_and_keep_their_name(value: Any, plain: Any, name: str) -> None:
    assert decode(encode(value)) == plain
    assert type_name(value).endswith(name.rpartition(".")[2])


@pytest.mark.parametrize("value", [object(), iter([1]), lambda: 0, np.zeros(2), [{"a": object()}], type("E", (), {})()])
def test_what_is_no_plain_data_does_not_travel(value: Any) -> None:
    with pytest.raises(NotPlainError, match="no plain data"):
        encode(value)


@pytest.mark.parametrize(
    "told", [{"i": "x"}, {"x": 1}, {}, {"t": 1, "s": 2}, {"d": [1]}, {"r": [1, 2, 0]}, {"s": [[]]}]
)
def test_what_is_no_encoding_is_refused(told: Any) -> None:
    with pytest.raises(NotPlainError):
        decode(told)


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff", b"\x02\x00\x00\x00{x", b"\x04\x00\x00\x00[[[["])
def test_what_is_no_message_is_refused(content: bytes) -> None:
    reads, writes = os.pipe()
    os.write(writes, content)
    os.close(writes)
    with pytest.raises(NotPlainError):
        receive(reads)
    with pytest.raises(EOFError):
        receive(reads)
    os.close(reads)
