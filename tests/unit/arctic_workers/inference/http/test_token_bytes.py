"""What tokens stand for, with the decoders that models come with."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from arctic_workers.inference.http.token_bytes import TokenBytes

BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
PIECES = BYTES | {"\u2581": 256, "a": 257, "\u2581a": 258, "<s>": 259, "A": 260}


def with_fallback(decoder: decoders.Decoder) -> Tokenizer:
    made = Tokenizer(models.BPE(PIECES, [("\u2581", "a")], byte_fallback=True))
    made.decoder = decoder
    made.add_special_tokens(["<s>"])
    return made


def test_bytes_of_a_byte_level_tokenizer_make_up_the_text(tokenizer: Tokenizer) -> None:
    of = TokenBytes(tokenizer).of

    @settings(max_examples=100)
    @given(st.text(max_size=12))
    def check(text: str) -> None:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(map(of, tokens)) == text.encode()

    check()
    assert of(tokenizer.token_to_id("</s>")) == b"</s>"
    assert TokenBytes(tokenizer).longest == max(len(of(token)) for token in range(tokenizer.get_vocab_size()))


LLAMA = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


@pytest.mark.parametrize(
    "decoder",
    [decoders.Sequence(LLAMA), decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])],
    ids=["llama", "metaspace"],
)
def test_leading_spaces_and_single_bytes_are_kept(decoder: decoders.Decoder) -> None:
    found = TokenBytes(with_fallback(decoder))
    assert [found.of(token) for token in (0xE4, 256, 257, 258, 259)] == [b"\xe4", b" ", b"a", b" a", b"<s>"]
    assert found.of(9999) == b""
    assert found.longest == 3


def test_a_tokenizer_without_a_token_for_every_byte_has_no_longest_one() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    assert TokenBytes(words).of(0) == b"a"
    assert TokenBytes(words).longest is None
