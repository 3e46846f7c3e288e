"""What the next step carries: continuous batching with split-fuse (Holmes et al. 2024, arXiv 2401.08671). No torch.

Every running sequence that generates gets its one token first; what is left of the token budget is filled with pieces
of prompts. Sequences are served in order of arrival, and the youngest make room when blocks run out, so the oldest
always proceeds and none waits forever.
"""

from collections import deque
from dataclasses import dataclass

from arctic_workers.inference.engine import FinishReason
from arctic_workers.inference.engines.native.blocks import BlockManager
from arctic_workers.inference.engines.native.sequence import Sequence


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

    A sequence must fit into the blocks alone: prompt and `max_tokens` together at most `blocks.capacity`.
    """

    def __init__(self, blocks: BlockManager, *, token_budget: int, max_sequences: int) -> None:
        self._blocks = blocks
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
        needed = len(sequence.request.prompt) + sequence.request.sampling.max_tokens
        if needed > self._blocks.capacity:
            raise ValueError(f"a request of {needed} tokens can never fit into {self._blocks.capacity}")
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence now; a token of it that is on its way will be dropped."""
        if not sequence.ended:
            self._end(sequence)

    def schedule(self) -> list[Chunk]:
        """Choose the tokens of the next step, in all at most the budget; empty if nothing can be done."""
        chunks, preempted = self._decode()
        budget = self._budget - len(chunks)
        for sequence in self._running:
            if budget and sequence.uncomputed > 1:
                chunks.append(_take(sequence, budget))
                budget -= chunks[-1].length
        # Who has just made room must not take it back in the same step.
        while budget and not preempted and self._admit():
            chunks.append(_take(self._running[-1], budget))
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
        preempted = False
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            if sequence.uncomputed == 1:
                while not self._blocks.grow(sequence.blocks, len(sequence.tokens)):
                    preempted = True
                    if self._preempt() is sequence:
                        return chunks, preempted
                chunks.append(_take(sequence, 1))
            index += 1
        return chunks, preempted

    def _preempt(self) -> Sequence:
        """Take the youngest running sequence's blocks; it will compute its keys and values again."""
        sequence = self._running.pop()
        self._blocks.release(sequence.blocks)
        sequence.computed = 0
        self._waiting.appendleft(sequence)
        return sequence

    def _admit(self) -> bool:
        """Start the oldest waiting sequence if there is room for all its tokens."""
        if not self._waiting or len(self._running) >= self._most:
            return False
        sequence = self._waiting[0]
        if sequence.awaiting or not self._blocks.grow(sequence.blocks, len(sequence.tokens)):
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


def _take(sequence: Sequence, budget: int) -> Chunk:
    """Schedule as many of a sequence's tokens as the budget allows."""
    length = min(sequence.uncomputed, budget)
    samples = length == sequence.uncomputed
    chunk = Chunk(sequence, sequence.computed, length, samples)
    sequence.computed += length
    sequence.awaiting = samples
    return chunk
