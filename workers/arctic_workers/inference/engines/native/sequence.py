"""One request as the scheduler sees it. No torch, no I/O."""

from collections import Counter
from dataclasses import replace

from arctic_workers.inference.engine import FinishReason, Request
from arctic_workers.inference.engines.native.blocks import Link
from arctic_workers.inference.engines.native.step import Draw, Drawn, Known
from arctic_workers.inference.engines.native.window import Window


class Sequence:
    """Tokens known so far, how many of them have keys and values in the cache, and where these are.

    `computed` counts tokens whose pass was *scheduled*: passes go through every rank in order, so a later one may
    build on an earlier one that is still on its way. Proposed tokens count too, until they are known or rejected.

    A sequence that outgrows the window that attention has does so for good: what the layers made of tokens that it has
    lost can't be computed again. It forgets tokens once they are computed, so that its memory has a bound.
    """

    def __init__(self, request: Request, *, salt: bytes = b"", shares: bool = False, adapter: int = -1) -> None:
        self.request = request
        self.adapter = adapter
        """Place of its adapter among the group's, -1 for none."""
        self.salt = salt
        """Nothing goes from one sequence to another of another salt."""
        self.shares = shares
        """Whether its blocks are shared with sequences of the same salt that begin alike."""
        self.tokens = list(request.prompt)
        self.length = len(self.tokens)
        """Tokens so far, forgotten ones too."""
        self.computed = 0
        self.blocks: list[int] = []
        self.links: list[Link] = []
        """Of its first blocks, those that are kept for others."""
        self.arrival = 0
        """Its place among all that were added, set by the scheduler."""
        self.preempted = False
        """Whether it has lost its blocks and not got them again."""
        self.outgrows: Window | None = None
        """The window, if prompt and `max_tokens` together are more than it reaches."""
        self.dropped = 0
        """Blocks that `blocks` lacks after those of the sinks."""
        self.awaiting = False
        """Whether a token of it is being sampled."""
        self.held = False
        """Whether it gets no token for now, and keeps what it has."""
        self.ended = False
        self.begun: float | None = None
        """When the first step with a part of it began, once that step is over."""
        self.told: dict[int, Drawn] = {}
        """Tokens of the prompt by position, with their probabilities, where these are asked for."""
        sampling = request.sampling
        self._draw = Draw.of(sampling, len(request.prompt))
        self._counts = Counter(dict.fromkeys(request.prompt, 0)) if sampling.counts_tokens else None

    @property
    def draw(self) -> Draw:
        """How its next token is chosen."""
        if self._counts is None or self._draw.adjustment is None:
            return self._draw
        return replace(self._draw, adjustment=replace(self._draw.adjustment, counts=tuple(self._counts.items())))

    def known(self, start: int, length: int) -> Known | None:
        """Return the tokens of the prompt to be told of in the pass of some tokens: each after the one before it."""
        top = self.request.sampling.prompt_logprobs
        if top is None or self.generated:  # computed anew, they have been told already
            return None
        return Known(self.request.prompt[start + 1 : start + length + 1], top)

    @property
    def order(self) -> tuple[int, int]:
        """Who comes first: the lower priority, then the earlier arrival."""
        return self.request.priority, self.arrival

    @property
    def uncomputed(self) -> int:
        """Known tokens without keys and values."""
        return self.length - self.computed

    @property
    def _forgotten(self) -> int:
        """Tokens that are not in `tokens` any more."""
        return self.length - len(self.tokens)

    def slice(self, start: int, end: int) -> tuple[int, ...]:
        """Return the tokens from one position to another, which must not be forgotten."""
        return tuple(self.tokens[start - self._forgotten : end - self._forgotten])

    @property
    def generated(self) -> int:
        """Tokens sampled so far."""
        return self.length - len(self.request.prompt)

    def append(self, token: int) -> FinishReason | None:
        """Take a sampled token; return why the sequence ends with it, if it does."""
        if self.outgrows:
            del self.tokens[: self.computed - self._forgotten]
        self.tokens.append(token)
        self.length += 1
        if self._counts is not None:
            self._counts[token] += 1
        if token in self.request.sampling.stop_tokens:
            return "stop"
        return "length" if self.generated >= self.request.sampling.max_tokens else None
