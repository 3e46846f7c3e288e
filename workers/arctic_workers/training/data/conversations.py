"""Conversations as documents: the text that the model's own chat template writes, and the tokens of its answers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding

from arctic_workers.chat.template import ChatTemplate, TextError
from arctic_workers.training.data.messages import Message, RowFault, whole_characters
from arctic_workers.training.data.tokenizer import PIECE, Encoded, TextEncoder, batches, read_config
from arctic_workers.training.errors import Refused

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
LONGEST = 4 * PIECE
"""Characters: encodings take far more memory than their text, and a conversation is encoded at once."""


@dataclass(frozen=True)
class Conversation:
    """A conversation as the model reads it."""

    text: str
    answers: Sequence[tuple[int, int]]
    """Where the answers begin and end in it."""

    def __str__(self) -> str:
        """Return its text."""
        return self.text

    def __len__(self) -> int:
        """Return how long that is."""
        return len(self.text)


class ConversationEncoder(TextEncoder):
    """A saved tokenizer with its chat template."""

    of_conversations = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tokenizer.encode_special_tokens = False  # the template writes them
        config = read_config(folder)
        names = {name: self._content(config, name) for name in SPECIAL}
        try:
            self._template = ChatTemplate.of(folder, config, {name: text for name, text in names.items() if text})
        except TextError as error:
            raise Refused("TokenizerDamaged", f"tokenizer: {error}") from error

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """Return what the template makes of messages; `RowFault` if it refuses them."""
        try:
            text, answers = self._template.conversation(messages)
        except TextError as error:
            raise RowFault(f"has no usable messages: {error}") from error
        if len(text) > LONGEST:
            raise RowFault(f"has a conversation of more than {LONGEST} characters")
        return Conversation(whole_characters(text), answers)  # a template may write any field of a message

    def encode_documents(self, documents: Iterable[Conversation]) -> Iterator[Encoded]:  # type: ignore[override]
        """Yield the tokens of each conversation, and those of its answers.

        Where an answer at the end has no sign of that by the template, EOS is added to it. A token that is partly of a
        prompt is no answer's.
        """
        special = not self._template.is_marked  # a model's own template writes them itself
        for batch in batches(documents, len):
            encodings = self.tokenizer.encode_batch([str(each) for each in batch], add_special_tokens=special)
            for conversation, encoding in zip(batch, encodings, strict=True):
                yield self._encoded(conversation, encoding)

    def _encoded(self, conversation: Conversation, encoding: Encoding) -> Encoded:
        ids = list(encoding.ids)
        answers = [span for answer in conversation.answers if (span := _token_span(encoding, answer))]
        at_end = bool(conversation.answers) and conversation.answers[-1][1] == len(conversation.text)
        if at_end and answers and self.eos not in ids[answers[-1][0] :]:
            answers[-1] = (answers[-1][0], len(ids) + 1)
            ids.append(self.eos)
        return Encoded(ids, answers=answers)


def _token_span(encoding: Encoding, answer: tuple[int, int]) -> tuple[int, int] | None:
    """Return the tokens that are of an answer alone, None if there are none; never the first, before which is none."""
    inside = [i for i, (begin, end) in enumerate(encoding.offsets) if i and answer[0] <= begin < end <= answer[1]]
    return (inside[0], inside[-1] + 1) if inside else None
