"""What the next step carries: continuous batching with split-fuse (Holmes et al. 2024, arXiv 2401.08671). No torch.

Every running sequence that generates gets its one token first; what is left of the token budget is filled with pieces
of prompts. Sequences are served by priority, then in order of arrival; a prompt that is being read lets those of an
earlier priority start before its next piece, if there is room for them. When blocks run out, those of the last priority
make room, first who has the fewest tokens to compute again; the first of all only where nobody else can, so it
proceeds, and within a priority none waits forever. Where several ranks make a pipeline, as many steps are on their way:
what there is to do is shared out over them, so that all ranks are busy.

What outgrows attention's window never makes room, as tokens that it has lost can't be computed again: it starts when
all blocks that it will ever need are free, and keeps these. None of them is shared, as it writes to them anew. It
alone is ever held: left out of steps, it costs the others no more than it does anyway.
"""

from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from itertools import count, islice
from operator import attrgetter

from arctic_workers.inference.engine import FinishReason
from arctic_workers.inference.engines.native.blocks import BlockManager
from arctic_workers.inference.engines.native.budget import TokenBudget
from arctic_workers.inference.engines.native.sequence import Sequence
from arctic_workers.inference.engines.native.suffix import Drafter
from arctic_workers.inference.engines.native.window import CHUNK, Window

LEAST_PIECE = 32
"""Tokens of prompts that a step carries where there are so many: in smaller ones, most of the time goes to weights."""
_ORDER = attrgetter("order")


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence in one step."""

    sequence: Sequence
    start: int
    """Position of the first."""
    length: int
    """Of all tokens, the proposed ones among them."""
    samples: bool
    """Whether the step samples the token that follows the known ones, and one after each that is proposed."""
    draft: tuple[int, ...] = ()
    """Tokens proposed to follow the known ones: the last of the chunk."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens themselves, as long as the sequence has got no further."""
        return (*self.sequence.slice(self.start, self.start + self.length - len(self.draft)), *self.draft)

    @property
    def draws(self) -> int:
        """How many tokens the step samples, one after each of the last tokens."""
        return 1 + len(self.draft) if self.samples else 0


class Scheduler:
    """Owns all sequences from `add` until they end.

    A sequence must fit into the blocks alone: prompt and `max_tokens` together at most `blocks.capacity`, or what
    a `window` takes.
    """

    def __init__(
        self,
        blocks: BlockManager,
        budget: TokenBudget,
        *,
        max_sequences: int,
        ranks: int = 1,
        window: Window | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """`ranks` steps can be on their way at once."""
        self._blocks = blocks
        self._budget = budget
        self._ranks = ranks
        self._window = window
        self._drafter = drafter
        # So that every running sequence's token fits into every step.
        self._most = min(max_sequences, budget.most)
        # Both in order.
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._arrivals = count()

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
            sequence.shares = False
            needed = self._room(sequence)
        if needed > self._blocks.capacity:
            raise ValueError(f"a request of {needed} tokens can never fit into {self._blocks.capacity}")
        sequence.arrival = next(self._arrivals)
        insort(self._waiting, sequence, key=_ORDER)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence now, its blocks are free at once; tokens of it that are on their way will be dropped."""
        if not sequence.ended:
            self._end(sequence)

    def schedule(self, free: int = 1) -> list[Chunk]:
        """Choose the tokens of the next step, in all at most the budget; empty if nothing can be done.

        `free` steps, this among them, can be begun before one has to come back.
        """
        for sequence in self._running:
            self._keep(sequence)
        piece = max(-(-self._prompt_tokens() // free), LEAST_PIECE)
        preempted = self._make_room()
        generating = self._next_generating()
        # Who waits for a token that is on its way waits for this step too.
        budget = self._budget.tokens(self._share_of_generating())
        chunks = self._generate(generating, budget - len(generating))
        budget = min(budget - sum(chunk.length for chunk in chunks), piece)
        # Who has just made room for others must not take it back in the same step.
        prompts = self._prompts(admits=not (preempted and generating))
        while budget and (prompt := next(prompts, None)) is not None:
            chunks.append(self._take(prompt, budget))
            budget -= chunks[-1].length
        return chunks

    def update(self, chunk: Chunk, tokens: Ordered[int]) -> tuple[int, FinishReason | None]:
        """Take what a chunk sampled for a sequence that has not ended; return how many of the tokens it gets, and why
        it ends now, if it does.

        A token is the sequence's while all that was proposed before it proved right: it is then what would have been
        sampled without proposals.
        """
        sequence, draft = chunk.sequence, chunk.draft
        sequence.awaiting = False
        taken, reason = 0, None
        for token in tokens:
            reason = sequence.append(token)
            taken += 1
            if reason is not None or (taken <= len(draft) and token != draft[taken - 1]):
                break
        # The keys and values of what was rejected are written over by what comes in its place.
        sequence.computed = min(sequence.computed, sequence.length - 1)
        if self._drafter is not None:
            self._drafter.learn(sequence, len(draft), taken - 1)
        if reason is not None:
            self._end(sequence)
        return taken, reason

    def _next_generating(self) -> list[Sequence]:
        """Return the sequences that get their one token in the next step."""
        generating = (sequence for sequence in self._running if sequence.uncomputed == 1 and not sequence.held)
        return list(islice(generating, self._share_of_generating()))

    def _share_of_generating(self) -> int:
        """Most sequences that get their one token in the same step, so that the others' are for the other ranks.

        Counted are also those whose token is on its way: they stay in groups of about equal size.
        """
        talking = sum(sequence.uncomputed <= 1 and not sequence.held for sequence in self._running)
        return -(-talking // self._ranks)

    def _prompt_tokens(self) -> int:
        """Tokens of prompts that could be in the next step; some of those that wait may turn out to be known."""
        running = sum(sequence.uncomputed for sequence in self._running if sequence.uncomputed > 1)
        room = self._most - len(self._running)
        return running + sum(sequence.uncomputed for sequence in islice(self._waiting, room))

    def _prompts(self, *, admits: bool) -> Iterator[Sequence]:
        """Yield whose prompt is read next, starting who waits only as it is its turn.

        Within a priority what runs goes first, also before who came earlier and lost its blocks.
        """
        for prompt in [sequence for sequence in self._running if sequence.uncomputed > 1]:
            while admits and self._precedes(prompt) and (admitted := self._admit()) is not None:
                yield admitted
            yield prompt
        while admits and (admitted := self._admit()) is not None:
            yield admitted

    def _precedes(self, prompt: Sequence) -> bool:
        """Whether the first that waits has a priority before that of a running prompt."""
        return bool(self._waiting) and self._waiting[0].request.priority < prompt.request.priority

    def _make_room(self) -> bool:
        """Let others make room until each sequence that gets a token has a block for it; tell whether any did."""
        preempted = False
        while self._lacking() > self._blocks.free:
            self._preempt(self._cheapest())
            preempted = True
        return preempted

    def _lacking(self) -> int:
        return sum(self._blocks.missing(each.blocks, self._room(each)) for each in self._next_generating())

    def _room(self, sequence: Sequence) -> int:
        """Tokens that a sequence's blocks must hold: those that it has, or all that it ever will if it outgrows."""
        if sequence.outgrows is None:
            return sequence.length
        return min(_most_tokens(sequence), sequence.outgrows.blocks(self._blocks.size) * self._blocks.size)

    def _cheapest(self) -> Sequence:
        """Return who makes room: the first only if all others keep theirs for good."""
        able = [sequence for sequence in self._running if sequence.outgrows is None]
        others = [sequence for sequence in able if sequence is not self._running[0]]
        return min(others or able, key=self._loss)

    def _loss(self, sequence: Sequence) -> tuple[int, bool, int, int]:
        """What it costs to take a sequence's blocks, the least first: the tokens that it would compute again."""
        owned = self._blocks.owned(sequence.blocks)
        again = sequence.computed - (len(sequence.blocks) - owned) * self._blocks.size
        return -sequence.request.priority, owned == 0, max(again, 0), -sequence.arrival

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it will compute its keys and values again, but for those still kept."""
        self._running.remove(sequence)
        self._release(sequence)
        sequence.computed = 0
        sequence.preempted = True
        insort(self._waiting, sequence, key=_ORDER)

    def _generate(self, generating: list[Sequence], most: int) -> list[Chunk]:
        """One token for every sequence that lacks only that, and what is proposed to follow."""
        drafts: dict[Sequence, list[int]] = {}
        # While prompts are read a step has enough to do.
        if self._drafter is not None and not self._prompt_tokens() and not self._waiting:
            drafts = self._drafter.propose(generating, most)
        for sequence in generating:
            self._blocks.grow(sequence.blocks, self._room(sequence))
        chunks = []
        for sequence in generating:
            draft = tuple(drafts.get(sequence, ()))
            if draft and not self._blocks.grow(sequence.blocks, sequence.length + len(draft)):
                draft = ()
            chunks.append(self._take(sequence, 1, draft))
        return chunks

    def _admit(self) -> Sequence | None:
        """Start the first waiting sequence and return it, if there is room for all its tokens, or all it will have."""
        if not self._waiting or len(self._running) >= self._most:
            return None
        sequence = self._waiting[0]
        if sequence.awaiting:
            return None
        kept, links = self._blocks.find(sequence.salt, sequence.tokens) if sequence.shares else ([], [])
        # Or who lost its blocks would lose them again with the next block that somebody needs.
        spare = sum(each.outgrows is None for each in self._running) if sequence.preempted else 0
        if not self._blocks.start(sequence.blocks, kept, self._room(sequence), spare=spare):
            return None
        sequence.links = links
        sequence.computed = len(kept) * self._blocks.size
        sequence.preempted = False
        insort(self._running, self._waiting.pop(0), key=_ORDER)
        return sequence

    def _keep(self, sequence: Sequence) -> None:
        """Keep the blocks that earlier steps fill, as far as their tokens are known."""
        if not sequence.shares:
            return
        size, links = self._blocks.size, sequence.links
        for index in range(len(links), min(sequence.computed, sequence.length) // size):
            tokens = sequence.slice(index * size, (index + 1) * size)
            links.append(self._blocks.keep(sequence.blocks, index, links[-1] if links else sequence.salt, tokens))

    def _end(self, sequence: Sequence) -> None:
        sequence.ended = True
        if sequence in self._running:
            self._keep(sequence)
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)
        if self._drafter is not None:
            self._drafter.end(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.blocks)
        sequence.links = []

    def _take(self, sequence: Sequence, budget: int, draft: tuple[int, ...] = ()) -> Chunk:
        """Schedule as many of a sequence's tokens as the budget allows, and what is proposed to follow them."""
        known = min(sequence.uncomputed, budget)
        if sequence.outgrows:
            known = min(known, CHUNK)
            end = sequence.computed + known
            sequence.dropped = sequence.outgrows.slide(sequence.blocks, sequence.dropped, end, self._blocks.size)
        samples = known == sequence.uncomputed
        length = known + len(draft)
        chunk = Chunk(sequence, sequence.computed, length, samples, draft)
        sequence.computed += length
        sequence.awaiting = samples
        return chunk


def _most_tokens(sequence: Sequence) -> int:
    return len(sequence.request.prompt) + sequence.request.sampling.max_tokens
