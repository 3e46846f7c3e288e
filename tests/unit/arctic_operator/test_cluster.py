"""What is sent to the API server."""

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from arctic_operator.cluster import yaml_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.text("abc", max_size=9), TEXTS | st.integers() | st.booleans()))
def test_an_applied_object_reads_the_same_as_yaml(body: dict[str, object]) -> None:
    assert yaml.safe_load(yaml_text(body)) == body


def test_a_picture_in_a_workers_last_words_is_no_pair_of_surrogates() -> None:
    text = yaml_text({"message": "GLHF! \U0001f3d6 and \\\\ud83c"})
    assert "\\U0001f3d6" in text
    assert yaml.safe_load(text) == {"message": "GLHF! \U0001f3d6 and \\\\ud83c"}


def test_half_a_character_is_replaced() -> None:
    assert yaml.safe_load(yaml_text({"message": "\ud83c"})) == {"message": "\ufffd"}
    assert json.loads(yaml_text({"message": "plain"})) == {"message": "plain"}
