"""Sequences cut from token streams, and where documents begin in them. Pure: numbers in, numbers out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16 | np.uint32]
Places = npt.NDArray[np.int64]
IGNORED = -100
"""Label of a token that nothing is learnt from: torch's own for a cross-entropy."""


class Window(NamedTuple):
    """One sequence of T tokens and the one after them."""

    tokens: Places
    """[T + 1]"""
    labels: Places
    """What each of the first T tokens is to predict, [T]: the next one, or `IGNORED`."""
    starts: Places
    """Where in the first T tokens documents begin, in order; the first is 0, whatever it is a part of."""
    size: int | None = None
    """Of the first T tokens, those before padding; None where there is none."""


class MicroBatch(NamedTuple):
    """Sequences that a rank computes at once."""

    tokens: Places
    """[B, T]"""
    labels: Places
    """[B, T]"""
    starts: Sequence[Sequence[int]]
    """Where documents begin, by sequence."""
    targets: int
    """Labels that count."""
    sizes: Sequence[int] | None = None
    """Tokens before padding, by sequence; None where there is none."""

    @classmethod
    def of(cls, windows: Sequence[Window]) -> "MicroBatch":
        """Stack windows of one length."""
        labels = np.stack([window.labels for window in windows])
        sizes = [window.labels.size if window.size is None else window.size for window in windows]
        return cls(
            np.stack([window.tokens[:-1] for window in windows]),
            labels,
            [window.starts.tolist() for window in windows],
            int((labels != IGNORED).sum()),
            sizes if sum(sizes) < labels.size else None,
        )


@dataclass(frozen=True)
class Stream:
    """The tokens of one source, document after document."""

    name: str
    category: str
    tokens: Tokens
    documents: Places = field(default_factory=lambda: np.zeros(1, np.int64))
    """Where documents begin, in order; the first is 0."""

    def window(self, index: int, length: int) -> Window:
        """Return tokens [index x length, (index + 1) x length], both ends included: each token's label is the next one.

        Nothing is to predict how another document begins. A stream goes round: one that is shorter than a sequence is
        repeated.
        """
        begin = index * length
        tokens = np.asarray(self.tokens[np.arange(begin, begin + length + 1) % len(self.tokens)], np.int64)
        labels = tokens[1:].copy()
        beginnings = self._beginnings(begin + 1, begin + length + 1) - begin
        labels[beginnings - 1] = IGNORED
        inside = beginnings[: np.searchsorted(beginnings, length)]
        return Window(tokens, labels, np.concatenate([np.zeros(1, np.int64), inside]))

    def windows(self, length: int) -> int:
        """Return how many windows cover the stream without overlap, at least one."""
        return max(1, (len(self.tokens) - 1) // length)

    def judged(self, length: int) -> Sequence[int]:
        """Return the windows that have anything to predict, in order."""
        return range(self.windows(length))

    def targets(self, index: int, length: int) -> int:
        """Return how many labels of a window count, without a look at its tokens."""
        return length - len(self._beginnings(index * length + 1, (index + 1) * length + 1))

    def _beginnings(self, begin: int, end: int) -> Places:
        """Return where documents begin in [begin, end) of the stream, which goes round."""
        size = len(self.tokens)
        parts = []
        for turn in range(begin // size, (end - 1) // size + 1):
            first, last = np.searchsorted(self.documents, [begin - turn * size, end - turn * size])
            parts.append(self.documents[first:last] + turn * size)
        return np.concatenate(parts)


@dataclass(frozen=True)
class Conversations(Stream):
    """Conversations, of which only the answers are learnt: each is whole in one window, or cut off at the window's end.

    What a window has no whole conversation for is padding: it is a document of its own, and has no labels.
    """

    answers: Places = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """Beginning and end of the tokens of each answer, in order: [number, 2]. No conversation begins with one."""
    pad: int = 0
    _tables: dict[int, Places] = field(default_factory=dict, compare=False)

    def window(self, index: int, length: int) -> Window:
        """Return as many whole conversations as fit."""
        begin, end, limit = self._extent(index, length)
        tokens = np.full(length + 1, self.pad, np.int64)
        tokens[: end - begin] = self.tokens[begin:end]
        labels = np.full(length, IGNORED, np.int64)
        first, last = np.searchsorted(self.answers[:, 1], begin, "right"), np.searchsorted(self.answers[:, 0], end)
        for answer_begin, answer_end in self.answers[first:last]:
            span = slice(int(answer_begin) - begin - 1, min(int(answer_end), end) - begin - 1)
            labels[span] = tokens[1:][span]
        inside = self.documents[np.searchsorted(self.documents, begin) : np.searchsorted(self.documents, limit)] - begin
        starts = [place for place in (*inside.tolist(), end - begin) if place < length]
        return Window(tokens, labels, np.array(starts, np.int64), min(end - begin, length))

    def windows(self, length: int) -> int:
        """Return how many windows hold all conversations."""
        return len(self._table(length)) - 1

    def judged(self, length: int) -> Sequence[int]:
        """Return the windows that have answers: those of a conversation that is cut off may be beyond its end."""
        return [index for index in range(self.windows(length)) if self.targets(index, length)]

    def targets(self, index: int, length: int) -> int:
        """Return how many labels of a window count, without a look at its tokens."""
        begin, end, _ = self._extent(index, length)
        return int(self._answers_before(end) - self._answers_before(begin))

    def _extent(self, index: int, length: int) -> tuple[int, int, int]:
        """Return where a window begins and ends in the stream, and where its conversations do."""
        table = self._table(length)
        begin, limit = int(table[index]), int(table[index + 1])
        return begin, min(limit, begin + length + 1), limit

    def _table(self, length: int) -> Places:
        """Return where each window begins, and the end of the stream."""
        if length not in self._tables:
            ends = np.append(self.documents[1:], len(self.tokens))
            places = [0]
            while places[-1] < len(self.tokens):
                begin = places[-1]
                whole = np.searchsorted(ends, begin + length + 1, "right")  # conversations that end by then
                first = np.searchsorted(ends, begin, "right")
                places.append(int(ends[max(whole - 1, first)]))
            self._tables[length] = np.array(places, np.int64)
        return self._tables[length]

    @cached_property
    def _answered(self) -> Places:
        """Tokens of answers before each answer, and of all."""
        sizes = self.answers[:, 1] - self.answers[:, 0]
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    def _answers_before(self, place: int) -> int:
        """Return how many tokens of the stream before `place` are of answers."""
        begun = int(np.searchsorted(self.answers[:, 0], place))
        if begun == 0:
            return 0
        begin, end = self.answers[begun - 1]
        return int(self._answered[begun - 1]) + min(int(end), place) - int(begin)
