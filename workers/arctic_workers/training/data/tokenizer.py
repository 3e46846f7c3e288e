"""The tokenizer of a run, trained on the sources or copied from a folder, in the files that Hugging Face tools read."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from arctic_workers.chat.template import TextError
from arctic_workers.chat.tokenizer import TOKENIZER_FILE, read_tokenizer
from arctic_workers.training.errors import Refused
from arctic_workers.training.files import write_json

T = TypeVar("T")

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SAMPLE_BYTES_PER_ENTRY = 1024
"""Text that the vocabulary is trained on, for each of its entries: bounds time and memory whatever the corpus holds."""
MAX_SAMPLE_PART = 16
"""No document gives more than this part of its source's sample: one long file must not be all that is seen."""
BATCH, BATCH_CHARACTERS = 256, 1 << 20
"""Most texts, and about the most text, that are encoded at once, in the library's threads: encoding takes more
than a hundred times the memory of the text."""
PIECE = 1 << 18
"""Characters of a document that are encoded at once."""
FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def train(sample: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (Radford et al., 2019) of at most `vocab_size` entries; it starts every text with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, BOS, EOS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def sample_texts(
    weights: dict[str, float], documents: Callable[[str], Iterable[str]], sample_bytes: int
) -> Iterator[str]:
    """Yield at most `sample_bytes` characters, from each source its share by weight, or less if its documents are few.

    One document gives at most a sixteenth of the share (`MAX_SAMPLE_PART`).
    """
    total = sum(weights.values())
    for name, weight in weights.items():
        left = int(sample_bytes * weight / total)
        most = max(1, left // MAX_SAMPLE_PART)
        for text in documents(name):
            if left <= 0:
                break
            part = text[: min(left, most)]
            left -= len(part)
            yield part


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer and its configuration into an existing folder."""
    tokenizer.save(str(folder / TOKENIZER_FILE))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def copy(source: Path, folder: Path) -> None:
    """Copy the tokenizer files of `source` into an existing folder; `Refused` if there is no tokenizer.json."""
    if not (source / TOKENIZER_FILE).is_file():
        raise Refused("TokenizerNotFound", f"tokenizer: there is no tokenizer.json in {source}")
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


class Encoded(NamedTuple):
    """The tokens of a document or of a piece of it."""

    ids: list[int]
    first: bool = True
    """Whether a document begins here."""
    answers: Sequence[tuple[int, int]] = ()
    """Of a conversation: where in `ids` the answers begin and end."""


class TextEncoder:
    """A saved tokenizer with the ids that a training needs."""

    of_conversations = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.tokenizer = read_tokenizer(folder)
        except TextError as error:
            raise Refused("TokenizerDamaged", f"tokenizer: {error}") from error
        self.tokenizer.encode_special_tokens = True  # as text: `<s>` in a document does not begin another one
        config = read_config(folder)
        self.bos = self._token_id(config, "bos_token")
        self.pad = self._token_id(config, "pad_token")
        eos = self._token_id(config, "eos_token")
        if eos is None:
            raise Refused("TokenizerDamaged", f"tokenizer: {folder}/tokenizer_config.json names no known eos_token")
        self.eos = eos

    @cached_property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: one more than the highest id, special tokens included; ids may have gaps."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def _token_id(self, config: dict[str, Any], name: str) -> int | None:
        token = self._content(config, name)
        return None if token is None else self.tokenizer.token_to_id(token)

    def _content(self, config: dict[str, Any], name: str) -> str | None:
        """Return the text of a special token."""
        value = config.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if token is not None and not isinstance(token, str):
            raise Refused(
                "TokenizerDamaged", f"tokenizer: {name} in {self.folder}/tokenizer_config.json is {token!r}, not a text"
            )
        return token

    def encode_documents(self, texts: Iterable[str]) -> Iterator[Encoded]:
        """Yield each text as BOS, its tokens, EOS (without BOS where the tokenizer has none); a long one in pieces."""
        start = [] if self.bos is None else [self.bos]
        pieces = (piece for text in texts for piece in _pieces(text))
        for batch in batches(pieces, lambda piece: len(piece.text)):
            encodings = self.tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
            for piece, encoding in zip(batch, encodings, strict=True):
                ids = [*(start if piece.first else []), *encoding.ids, *([self.eos] if piece.last else [])]
                yield Encoded(ids, piece.first)


class _Piece(NamedTuple):
    """A part of a document that is encoded on its own."""

    text: str
    first: bool
    last: bool


def _pieces(text: str) -> Iterator[_Piece]:
    """Cut a document: behind line ends where it has any, so that hardly a token differs from those of the whole."""
    start = 0
    while True:
        end = start + PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield _Piece(text[start:end], start == 0, end >= len(text))
        if end >= len(text):
            return
        start = end


def batches(items: Iterable[T], size: Callable[[T], int], least: int = 1) -> Iterator[list[T]]:
    """Yield items in lists that are bounded in number and in characters; the first has `least` if there are so many."""
    batch: list[T] = []
    room = BATCH_CHARACTERS
    for item in items:
        batch.append(item)
        room -= size(item)
        if len(batch) >= BATCH or (room <= 0 and len(batch) >= least):
            yield batch
            batch, room, least = [], BATCH_CHARACTERS, 1
    if batch:
        yield batch


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's `tokenizer_config.json`; `Refused` if there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        raise Refused("TokenizerNotFound", f"tokenizer: there is no tokenizer_config.json in {folder}")
    try:
        loaded = json.loads(path.read_text())
    except ValueError as error:
        raise Refused("TokenizerDamaged", f"tokenizer: {path} is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise Refused("TokenizerDamaged", f"tokenizer: {path} is not a JSON object")
    return loaded
