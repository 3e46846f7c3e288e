"""What the next step carries: continuous batching with split-fuse (Holmes et al. 2024, arXiv 2401.08671). No torch.

Every running sequence that generates gets its one token first; what is left of the token budget is filled with pieces
of prompts. Sequences are served in order of arrival, and the youngest make room when blocks run out, so the oldest
always proceeds and none waits forever. Where several ranks make a pipeline, as many steps are on their way: what there
is to do is shared out over them, so that all ranks are busy.

What outgrows attention's window never makes room, as tokens that it has lost can't be computed again: it starts when
all blocks that it will ever need are free, and keeps these.
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice

from arctic_workers.inference.engine import FinishReason
from arctic_workers.inference.engines.native.blocks import BlockManager
from arctic_workers.inference.engines.native.sequence import Sequence
from arctic_workers.inference.engines.native.window import CHUNK, Window

LEAST_PIECE = 32
"""Tokens of prompts that a step carries where there are so many: in smaller ones, most of the time goes to weights."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence in one step."""

    sequence: Sequence
    start: int
    """Position of the first."""
    length: int
    samples: bool
    """Whether the step samples the token that follows."""


class Scheduler:
    """Owns all sequences from `add` until they end.

    A sequence must fit into the blocks alone: prompt and `max_tokens` together at most `blocks.capacity`, or what
    a `window` takes.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        token_budget: int,
        max_sequences: int,
        ranks: int = 1,
        window: Window | None = None,
    ) -> None:
        """`ranks` steps can be on their way at once."""
        self._blocks = blocks
        self._ranks = ranks
        self._window = window
        self._budget = token_budget
        # So that every running sequence's token fits into every step.
        self._most = min(max_sequences, token_budget)
        # Both in order of arrival, and all of `_running` came before all of `_waiting`.
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for room."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        needed = _most_tokens(sequence)
        if self._window is not None and needed > self._window.reach:
            sequence.outgrows = self._window
            needed = self._room(sequence)
        if needed > self._blocks.capacity:
            raise ValueError(f"a request of {needed} tokens can never fit into {self._blocks.capacity}")
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence now; a token of it that is on its way will be dropped."""
        if not sequence.ended:
            self._end(sequence)

    def schedule(self, free: int = 1) -> list[Chunk]:
        """Choose the tokens of the next step, in all at most the budget; empty if nothing can be done.

        `free` steps, this among them, can be begun before one has to come back.
        """
        piece = max(-(-self._prompt_tokens() // free), LEAST_PIECE)
        chunks, preempted = self._decode()
        budget = min(self._budget - len(chunks), piece)
        for sequence in self._running:
            if budget and sequence.uncomputed > 1:
                chunks.append(self._take(sequence, budget))
                budget -= chunks[-1].length
        # Who has just made room must not take it back in the same step.
        while budget and not preempted and self._admit():
            chunks.append(self._take(self._running[-1], budget))
            budget -= chunks[-1].length
        return chunks

    def update(self, sequence: Sequence, token: int) -> FinishReason | None:
        """Take a sampled token of a sequence that has not ended; return why it ends now, if it does."""
        reason = sequence.append(token)
        if reason is not None:
            self._end(sequence)
        return reason

    def _decode(self) -> tuple[list[Chunk], bool]:
        """One token for every sequence that lacks only that; and whether others had to make room for it."""
        chunks: list[Chunk] = []
        waiting = len(self._waiting)
        index = 0
        most = self._share_of_generating()
        while index < len(self._running) and len(chunks) < most:
            sequence = self._running[index]
            if sequence.uncomputed == 1:
                if not self._make_room(sequence):
                    continue
                chunks.append(self._take(sequence, 1))
            index += 1
        return chunks, len(self._waiting) > waiting

    def _make_room(self, sequence: Sequence) -> bool:
        """Give a sequence the blocks that it needs, if need be those of the youngest; False if it was that itself."""
        while not self._blocks.grow(sequence.blocks, self._room(sequence)):
            if self._preempt() is sequence:
                return False
        return True

    def _room(self, sequence: Sequence) -> int:
        """Tokens that a sequence's blocks must hold: those that it has, or all that it ever will if it outgrows."""
        if sequence.outgrows is None:
            return sequence.length
        return min(_most_tokens(sequence), sequence.outgrows.blocks(self._blocks.size) * self._blocks.size)

    def _share_of_generating(self) -> int:
        """Most sequences that get their one token in the same step, so that the others' are for the other ranks.

        Counted are also those whose token is on its way: they stay in groups of about equal size.
        """
        return -(-sum(sequence.uncomputed <= 1 for sequence in self._running) // self._ranks)

    def _prompt_tokens(self) -> int:
        """Tokens of prompts that could be in the next step."""
        running = sum(sequence.uncomputed for sequence in self._running if sequence.uncomputed > 1)
        room = self._most - len(self._running)
        return running + sum(sequence.uncomputed for sequence in islice(self._waiting, room))

    def _preempt(self) -> Sequence:
        """Take the blocks of the youngest running sequence that can compute its keys and values again."""
        sequence = next(sequence for sequence in reversed(self._running) if not sequence.outgrows)
        self._running.remove(sequence)
        self._blocks.release(sequence.blocks)
        sequence.computed = 0
        self._waiting.appendleft(sequence)
        return sequence

    def _admit(self) -> bool:
        """Start the oldest waiting sequence if there is room for all its tokens, or for all it will ever have."""
        if not self._waiting or len(self._running) >= self._most:
            return False
        sequence = self._waiting[0]
        if sequence.awaiting or not self._blocks.grow(sequence.blocks, self._room(sequence)):
            return False
        self._running.append(self._waiting.popleft())
        return True

    def _end(self, sequence: Sequence) -> None:
        sequence.ended = True
        self._blocks.release(sequence.blocks)
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def _take(self, sequence: Sequence, budget: int) -> Chunk:
        """Schedule as many of a sequence's tokens as the budget allows."""
        length = min(sequence.uncomputed, budget)
        if sequence.outgrows:
            length = min(length, CHUNK)
            end = sequence.computed + length
            sequence.dropped = sequence.outgrows.slide(sequence.blocks, sequence.dropped, end, self._blocks.size)
        samples = length == sequence.uncomputed
        chunk = Chunk(sequence, sequence.computed, length, samples)
        sequence.computed += length
        sequence.awaiting = samples
        return chunk


def _most_tokens(sequence: Sequence) -> int:
    return len(sequence.request.prompt) + sequence.request.sampling.max_tokens
