"""Steps on the wire."""

from hypothesis import given
from hypothesis import strategies as st

from arctic_workers.inference.engines.native.step import (
    Adjustment,
    Draw,
    Drawn,
    Known,
    Part,
    decode_drawn,
    decode_parts,
    encode_drawn,
    encode_parts,
)

ids = st.integers(0, 2**31)
reals = st.floats(allow_nan=False)
adjustments = st.builds(
    Adjustment,
    frequency_penalty=reals,
    presence_penalty=reals,
    repetition_penalty=reals,
    bias=st.lists(st.tuples(ids, reals), max_size=3).map(tuple),
    banned=st.lists(ids, max_size=3).map(tuple),
    banned_before=ids,
    counts=st.lists(st.tuples(ids, ids), max_size=3).map(tuple),
)
draws = st.builds(
    Draw,
    seed=st.integers(-(2**63), 2**63 - 1),
    temperature=reals,
    top_p=reals,
    top_k=ids,
    logprobs=st.none() | st.integers(0, 20),
    min_p=reals,
    adjustment=st.none() | adjustments,
)
known = st.builds(Known, tokens=st.lists(ids, max_size=3).map(tuple), top=st.integers(0, 20))
places = {
    "start": ids,
    "tokens": st.lists(ids).map(tuple),
    "blocks": st.lists(ids).map(tuple),
    "known": st.none() | known,
    "dropped": ids,
    "adapter": st.integers(-1, 63),
}
parts = st.builds(Part, **places, draw=st.none()) | st.builds(Part, **places, draw=draws, draws=st.integers(1, 20))
drawn = st.builds(
    Drawn, token=ids, logprob=st.none() | reals, top=st.lists(st.tuples(ids, reals), max_size=4).map(tuple)
)


@given(st.lists(parts, max_size=4))
def test_parts_come_back_from_the_wire(sent: list[Part]) -> None:
    assert decode_parts(encode_parts(sent)) == sent


@given(st.lists(drawn, max_size=4))
def test_tokens_come_back_from_the_wire(sent: list[Drawn]) -> None:
    assert decode_drawn(encode_drawn(sent)) == sent
