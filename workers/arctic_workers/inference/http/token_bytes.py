"""What each token stands for, byte by byte. A tokenizer tells only the text, in which a part of a character is lost."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of one tokenizer's tokens, as its decoder puts them together."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = tokenizer.decoder
        decoders = [] if decoder is None else list(_flat(json.loads(decoder.__getstate__())))
        kinds = {one["type"] for one in decoders}
        self._tokenizer = tokenizer
        self._added = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()}
        self._alphabet = _byte_alphabet() if "ByteLevel" in kinds else None
        self._has_fallback = "ByteFallback" in kinds
        self._replaced = [pair for one in decoders if (pair := _replacement(one)) is not None]
        self.longest: int | None = None
        """Bytes of the longest token; None where a token may stand for any text, because not every byte has one."""
        if self._alphabet or self._has_fallback:
            self.longest = max(len(self.of(token)) for token in tokenizer.get_vocab().values())

    def of(self, token: int) -> bytes:
        """Return a token's bytes; none for a number that is no token of the tokenizer."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._alphabet is not None:
            return b"".join(self._alphabet.get(character, character.encode()) for character in piece)
        if self._has_fallback and (match := _FALLBACK.fullmatch(piece)):
            return bytes.fromhex(match[1])
        if not self._replaced:
            return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return str(piece).encode()


def _flat(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A decoder may be a sequence of others."""
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for one in decoder["decoders"]:
        yield from _flat(one)


def _replacement(decoder: dict[str, Any]) -> tuple[str, str] | None:
    """What stands for a space in the vocabulary, usually U+2581."""
    if decoder["type"] == "Metaspace":
        return decoder["replacement"], " "
    if decoder["type"] == "Replace" and "String" in decoder["pattern"]:
        return decoder["pattern"]["String"], decoder["content"]
    return None


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's: bytes that are printable stand for themselves, the others for characters from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    alphabet = {chr(byte): bytes([byte]) for byte in shown}
    return alphabet | {chr(0x100 + number): bytes([byte]) for number, byte in enumerate(hidden)}
