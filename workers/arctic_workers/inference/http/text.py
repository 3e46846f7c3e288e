"""Between text and tokens: the tokenizer, text from tokens as they come, and stop strings."""

import json
from codecs import getincrementaldecoder
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from arctic_workers.chat.template import SETTINGS_FILE, ChatTemplate, TextError
from arctic_workers.chat.tokenizer import read_tokenizer
from arctic_workers.inference.http.token_bytes import TokenBytes

_CONFIG_FILES = ("config.json", "generation_config.json")
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_LONGEST_HELD = 32
_FEW = 256
"""Tokens for whose text a call for batches would take longer than it is worth."""
_EARLIER = 4
_LONGEST_CHARACTER = 4
"""Bytes, in UTF-8."""
_LONGEST_DECODED = 16
"""Tokens that are decoded again for the next one: to cut them off takes decoding what is left."""


class Text:
    """The tokenizer and chat template of one model folder. TextError with a sentence if they can't be read."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = read_tokenizer(folder)
        self._bytes = TokenBytes(self._tokenizer)
        settings = _read_json(folder / SETTINGS_FILE)
        self._special = {
            name: _content(folder, settings, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        special = {name: token for name, token in self._special.items() if token}
        self.chat = ChatTemplate.of(folder, settings, special)
        self.stop_tokens = self._stop_tokens(folder)
        known = frozenset(self._tokenizer.get_vocab().values())
        added = self._tokenizer.get_added_tokens_decoder()
        self.shown = known.difference(token for token, one in added.items() if one.special)
        """Tokens that text is made of, unlike special ones and numbers that are no tokens."""
        self.vocabulary: int = 1 + max(known, default=-1)
        """All of the tokenizer's tokens are less than this; there may be gaps among them."""

    def info(self) -> dict[str, str | None]:
        """Return the special tokens and the chat template by the names of `tokenizer_config.json`."""
        return {**self._special, "chat_template": self.chat.source}

    def _stop_tokens(self, folder: Path) -> frozenset[int]:
        """Every token that any of the model's files calls an end."""
        found: set[int] = set()
        for name in _CONFIG_FILES:
            value = _read_json(folder / name).get("eos_token_id")
            tokens = value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(token) is int for token in tokens):
                raise TextError(f"{folder / name}: eos_token_id is {value!r}; write a token's number or a list of them")
            found.update(tokens)
        eos = self._special["eos_token"]
        identity = self._tokenizer.token_to_id(eos) if eos else None
        return frozenset(found if identity is None else found | {identity})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Turn text into tokens; with `special`, those that the tokenizer puts around every text are there."""
        # Of the library's calls only those for batches let other threads of the interpreter go on, as in `decode`.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return list(encoding.ids)

    def least_tokens(self, text: str) -> int:
        """Return how many tokens text takes at least, without the work of finding them."""
        longest = self._bytes.longest
        return 0 if longest is None else -(-len(text.encode()) // longest)

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Turn tokens into text, special ones left out unless asked for."""
        if len(tokens) <= _FEW:
            return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))
        [text] = self._tokenizer.decode_batch([list(tokens)], skip_special_tokens=not special)
        return str(text)

    def decode_finished(self, tokens: Sequence[int]) -> str:
        """Turn tokens into text, without a character at its end that they leave unfinished."""
        whole = [token for token in tokens if token in self.shown]
        left = self.unfinished(whole)
        # To some decoders one byte that is no text makes those before it none either.
        while left and len(last := self.token_bytes(whole[-1])) <= left:
            left -= len(last)
            whole.pop()
        text = self.decode(whole)
        return text.removesuffix(_UNFINISHED) if left else text

    def unfinished(self, tokens: Sequence[int]) -> int:
        """Return how many bytes at the end of tokens are only the beginning of a character."""
        decoder = getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(map(self.token_bytes, tokens[-_LONGEST_CHARACTER:])))
        return len(decoder.getstate()[0])

    def token_name(self, token: int) -> str:
        """Return how the tokenizer's vocabulary writes a token."""
        return str(self._tokenizer.id_to_token(token) or "")

    def token_bytes(self, token: int) -> bytes:
        """Return what a token stands for, which may be a part of a character."""
        return self._bytes.of(token)


def _content(folder: Path, settings: dict[str, Any], name: str) -> str | None:
    """A special token is written as text, or as an object around it."""
    token = settings.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(content, str):
        raise TextError(f"{folder / SETTINGS_FILE}: {name} is {token!r}; write the token's text")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TextError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise TextError(f"{path} holds no JSON object")
    return data


class Detokenizer:
    """Text from tokens as they come; a character whose bytes are not all there is held back.

    Tokens are decoded after some earlier ones, because a token's text may depend on those before it (a leading space).
    Those without text are left out: behind them alone a token would be the first of a text.
    """

    def __init__(self, text: Text, prompt: Sequence[int]) -> None:
        self._text = text
        self._tokens = _ending(text, prompt)
        # A character that the prompt leaves unfinished is the answer's.
        self._shown = text.decode_finished(self._tokens)
        self._read = len(self._tokens)

    def push(self, token: int) -> str:
        """Take a token; return the text that is now sure."""
        if token not in self._text.shown:
            return ""
        self._tokens.append(token)
        text = self._text.decode(self._tokens)
        # Bytes that will never become a character must not hold back all that follows.
        if (
            text.endswith(_UNFINISHED)
            and self._text.unfinished(self._tokens)
            and len(self._tokens) - self._read < _LONGEST_HELD
        ):
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Return what was held back, without a character that stays unfinished."""
        return self._show(self._text.decode_finished(self._tokens))

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        if len(self._tokens) > _LONGEST_DECODED:
            self._tokens = self._tokens[self._read :] or self._tokens
            text = self._text.decode(self._tokens)
        self._read = len(self._tokens)
        self._shown = text
        return new


def _ending(text: Text, prompt: Sequence[int]) -> list[int]:
    """Return a prompt's last tokens that have a text, from one with which a character begins."""
    ending: list[int] = []
    backwards = (token for token in reversed(prompt) if token in text.shown)
    for token in islice(backwards, _EARLIER + _LONGEST_CHARACTER - 1):
        ending.insert(0, token)
        if len(ending) >= _EARLIER and not b"\x80" <= text.token_bytes(token)[:1] < b"\xc0":
            break
    return ending


class StopStrings:
    """Finds the first of some strings in text that comes in pieces; holds back what may become one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self._passed = 0
        """Characters of what is held in which no stop string may end."""
        self.found = False

    def push(self, text: str, *, may_end: bool = True) -> str:
        """Take text; return what is sure to come before any stop string. Once `found`, there is nothing more.

        Where it may not end yet, no stop string is found that ends within it.
        """
        if not self._strings:
            return text
        self._held += text
        if not may_end:
            self._passed = len(self._held)
        if places := [place for string in self._strings if (place := self._find(string)) >= 0]:
            self.found = True
            return self._release(min(places))
        return self._release(len(self._held) - self._possible_start())

    def finish(self) -> str:
        """Return what was held back: the text ends without a stop string."""
        return self._release(len(self._held))

    def _find(self, string: str) -> int:
        return self._held.find(string, max(self._passed - len(string) + 1, 0))

    def _possible_start(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = max((len(string) for string in self._strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self._strings):
                return length
        return 0

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        self._passed = max(self._passed - length, 0)
        return text
