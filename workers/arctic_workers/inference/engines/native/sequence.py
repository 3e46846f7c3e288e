"""One request as the scheduler sees it. No torch, no I/O."""

from arctic_workers.inference.engine import FinishReason, Request


class Sequence:
    """Tokens known so far, how many of them have keys and values in the cache, and where these are.

    `computed` counts tokens whose pass was *scheduled*: passes go through every rank in order, so a later one may
    build on an earlier one that is still on its way.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.computed = 0
        self.blocks: list[int] = []
        self.awaiting = False
        """Whether a token of it is being sampled."""
        self.ended = False

    @property
    def uncomputed(self) -> int:
        """Known tokens without keys and values."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - len(self.request.prompt)

    def append(self, token: int) -> FinishReason | None:
        """Take a sampled token; return why the sequence ends with it, if it does."""
        self.tokens.append(token)
        self.awaiting = False
        if token in self.request.sampling.stop_tokens:
            return "stop"
        return "length" if self.generated >= self.request.sampling.max_tokens else None
