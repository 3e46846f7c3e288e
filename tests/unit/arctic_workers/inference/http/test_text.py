"""Text from tokens and back, and stop strings."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers

from arctic_workers.chat.template import TextError
from arctic_workers.inference.http.text import Detokenizer, StopStrings, Text


def test_text_comes_back_in_whole_characters(text: Text) -> None:
    @settings(max_examples=150)
    @given(before=st.text(max_size=8), answer=st.text(max_size=24))
    def check(before: str, answer: str) -> None:
        detokenizer = Detokenizer(text, text.encode(before))
        pieces = [detokenizer.push(token) for token in text.encode(answer)]
        pieces.append(detokenizer.finish())
        assert "".join(pieces) == answer
        if "\ufffd" not in answer:
            assert not any("\ufffd" in piece for piece in pieces)

    check()


def test_a_character_that_the_prompt_begins_is_the_answers(text: Text) -> None:
    first, *rest = text.encode("\N{MOUNTAIN}")
    detokenizer = Detokenizer(text, [*text.encode("a"), first])
    assert "".join([*map(detokenizer.push, rest), detokenizer.finish()]) == "\N{MOUNTAIN}"


def test_a_character_that_stays_unfinished_is_left_out(text: Text) -> None:
    detokenizer = Detokenizer(text, text.encode("x"))
    tokens = text.encode("a\N{MOUNTAIN}")
    assert len(tokens) > 2
    shown = [detokenizer.push(token) for token in tokens[:-1]]
    assert "".join([*shown, detokenizer.finish()]) == "a"


def streamed(text: Text, prompt: list[int], answer: list[int]) -> str:
    detokenizer = Detokenizer(text, prompt)
    return "".join([*map(detokenizer.push, answer), detokenizer.finish()])


@pytest.fixture(scope="module")
def bytes_alone(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """With a token a byte for all but a few characters, as Llama's and Arctic's have it for what is rare: of bytes in a
    row, one that is no text makes all of them none.
    """
    alphabet = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": 256, "▁": 257, "<|end|>": 258}
    made = Tokenizer(models.BPE(alphabet, [], byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<|end|>"])
    folder = tmp_path_factory.mktemp("bytes")
    made.save(str(folder / "tokenizer.json"))
    return Text(folder)


SCRIPTS = st.text(st.sampled_from("a é世界తె\ufffd\N{MOUNTAIN}\N{SLIGHTLY SMILING FACE}"), max_size=12)


def test_text_comes_back_where_characters_are_bytes(bytes_alone: Text) -> None:
    @settings(max_examples=100)
    @given(before=SCRIPTS, answer=SCRIPTS)
    def check(before: str, answer: str) -> None:
        assert streamed(bytes_alone, bytes_alone.encode(before), bytes_alone.encode(answer)) == answer

    check()


def test_a_prompt_that_ends_within_a_character_leaves_its_rest_to_the_answer(bytes_alone: Text) -> None:
    @settings(max_examples=100)
    @given(words=SCRIPTS, place=st.integers(0, 40))
    def check(words: str, place: int) -> None:
        tokens = bytes_alone.encode(words)
        prompt, answer = tokens[:place], tokens[place:]
        assert bytes_alone.decode_finished(prompt) + streamed(bytes_alone, prompt, answer) == words

    check()


def test_an_answer_that_ends_within_a_character_is_told_up_to_it(bytes_alone: Text) -> None:
    tokens = bytes_alone.encode("a世界")
    told = [streamed(bytes_alone, [256], tokens[:end]) for end in range(8)]
    assert told == ["", "a", "a", "a", *["a世"] * 3, "a世界"]


def test_a_character_before_special_tokens_is_not_torn(tmp_path: Path) -> None:
    """As chat templates write them behind each message, of which many end in an emoji."""
    made = byte_tokenizer()
    made.add_special_tokens(["<|end|>", "<|assistant|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path)
    for prompt in ("hi \N{MOUNTAIN}<|assistant|>", "\N{MOUNTAIN}<|end|><|assistant|>", "é" + "<|end|>" * 9):
        assert streamed(text, text.encode(prompt), text.encode("Hello")) == "Hello"
    assert streamed(text, text.encode("x"), text.encode("\N{MOUNTAIN}<|end|>" * 40)) == "\N{MOUNTAIN}" * 40


def test_no_space_is_lost_behind_a_special_token(tmp_path: Path) -> None:
    """Where the first token of a text shows none, as with Metaspace."""
    words = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "b": 4, "▁b": 5}
    made = Tokenizer(models.BPE(words, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<x>"])
    made.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path)
    special, unknown = made.token_to_id("<x>"), 1000
    for place in range(40):
        for silent in (special, unknown):
            answer = [3, 5] * 20
            answer.insert(place, silent)
            assert streamed(text, [3], answer) == " a b" * 20
            assert streamed(text, [], answer) == ("a b " * 20).strip()
            assert streamed(text, [3, *[silent] * 5], answer) == " a b" * 20


def test_bytes_that_are_no_text_do_not_hold_back_what_follows(text: Text, tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(text, ())
    broken = tokenizer.token_to_id("Ģ")  # byte 0x80, which begins no character
    shown = "".join(detokenizer.push(token) for token in [broken] * 100)
    assert shown.count("\ufffd") >= 60
    assert detokenizer.push(text.encode("a")[0]).endswith("a")


@settings(max_examples=300)
@given(
    pieces=st.lists(st.text("ab", max_size=5), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.found:
            break
    else:
        shown += matcher.finish()
    whole = "".join(pieces)
    # The first to be complete wins, and of those that end together the one that begins first.
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)]
    assert matcher.found == bool(ends)
    assert whole.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if not ends:
        assert shown == whole


@settings(max_examples=300)
@given(
    pieces=st.lists(st.text("ab", max_size=5), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    passed=st.integers(0, 8),
)
def test_a_stop_string_may_begin_where_it_may_not_end_yet(pieces: list[str], stops: list[str], passed: int) -> None:
    matcher = StopStrings(stops)
    shown = ""
    for number, piece in enumerate(pieces):
        shown += matcher.push(piece, may_end=number >= passed)
        if matcher.found:
            break
    else:
        shown += matcher.finish()
    whole, border = "".join(pieces), len("".join(pieces[:passed]))
    ends = [end for end in range(border + 1, len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)]
    assert matcher.found == bool(ends)
    assert whole.startswith(shown)
    if not ends:
        assert shown == whole


@pytest.mark.parametrize("value", [[[1]], {}, "</s>", [1, "</s>"], 1.5, True])
def test_an_end_token_that_is_no_number_is_named(folder: Path, value: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(TextError, match=r"generation_config\.json: eos_token_id is .*write a token's number"):
        Text(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chat_template", 5),
        ("chat_template", {"default": "x"}),
        ("chat_template", [{"name": "default"}]),
        ("chat_template", [5, {"name": "default", "template": "own"}]),
        ("chat_template", [{"name": "default", "template": None}]),
        ("eos_token", 2),
        ("bos_token", {"text": "<s>"}),
    ],
)
def test_tokenizer_settings_of_a_wrong_shape_are_named(folder: Path, key: str, value: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(TextError, match=rf"tokenizer_config\.json: {key} is .*; write"):
        Text(folder)


def test_a_vocabulary_with_gaps_reaches_to_its_highest_token(folder: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "b": 70_000, "?": 2}, unk_token="?")).save(str(folder / "tokenizer.json"))
    assert Text(folder).vocabulary == 70_001


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"tokenizer\.json is not there"):
        Text(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TextError, match="cannot be read as a tokenizer"):
        Text(tmp_path)
