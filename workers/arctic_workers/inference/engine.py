"""What every engine offers to the HTTP server: token ids in, token ids out. No engine, no torch and no text here."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]
"""`stop`: a stop token, which is then the last one; `length`: `max_tokens` are there."""

UNLIMITED = 2**53 - 1
"""The `max_length` of an engine whose requests have no bound: the greatest number that every reader of JSON keeps."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen."""

    max_tokens: int
    """Most tokens to generate; at least 1."""
    temperature: float = 1.0
    """0 is greedy, and so is what is hardly more."""
    top_p: float = 1.0
    """Share of the probability that candidates cover, 0 < top_p <= 1; the one that crosses it is among them."""
    top_k: int = 0
    """Most candidates; 0 is no limit."""
    seed: int = 0
    """Signed, 64 bits. The same seed gives the same tokens, whatever else the engine is doing."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside the chosen one; None reports no probabilities at all."""
    prompt_logprobs: int | None = None
    """The same for the prompt's own tokens."""
    stop_tokens: frozenset[int] = frozenset()
    """Tokens that end the request."""
    min_tokens: int = 0
    """Before so many tokens are there, none of the stop tokens is chosen."""
    min_p: float = 0.0
    """Candidates are at least so likely, as a share of the likeliest one's probability."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Taken from a token's logit if the answer has it."""
    repetition_penalty: float = 1.0
    """What the logit of a token that prompt or answer has is divided by, or where it is negative, multiplied with
    (Keskar et al. 2019); more than 0."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens with what is added to their logits."""

    @property
    def counts_tokens(self) -> bool:
        """Whether what is chosen depends on how often tokens were there before."""
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1)


@dataclass(frozen=True)
class Request:
    """One prompt to continue: at least one token, and with `max_tokens` at most the engine's `max_length`."""

    prompt: tuple[int, ...]
    sampling: Sampling
    priority: int = 0
    """Lower is earlier, where the engine knows priorities."""
    caller: bytes = b""
    """Digest of the API key that it came with."""
    adapter: str | None = None
    """Which of the group's adapters is added to the weights."""


@dataclass(frozen=True)
class Output:
    """One generated token, or one of the prompt's."""

    token: int
    logprob: float | None = None
    """Natural logarithm of its probability under the model as it is, before penalties, biases, temperature and cuts."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their logprobs, likeliest first."""
    finish_reason: FinishReason | None = None
    """Set with the last token."""
    prompt: tuple["Output", ...] = ()
    """With the first token, where `prompt_logprobs` asks for them: the prompt's; its first has no logprob."""
    begun: float | None = field(default=None, compare=False)
    """With the first token, of engines that tell: when the request's turn came, a moment of `time.monotonic`."""
    made: float | None = field(default=None, compare=False)
    """When it was there, of engines that tell, a moment of `time.monotonic`: it may be read much later."""


@dataclass(frozen=True)
class Stats:
    """What an engine is doing now."""

    running: int = 0
    waiting: int = 0
    kv_cache_utilization: float = 0.0
    """0 to 1."""
    loaded: float = 0.0
    """Share of this rank's weights that are in memory, 0 to 1, as far as the engine tells."""
    lost_blocks: int = 0
    """Blocks of the cache that had to be taken back since nobody gave them back: a fault of the engine's."""


SamplingField = Literal[
    "seed",
    "logprobs",
    "prompt_logprobs",
    "top_k",
    "min_p",
    "min_tokens",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "priority",
]
"""What of a request an engine may not honour."""


class Refused(ValueError):  # noqa: N818 - a refusal of input, not a fault of ours
    """The manifest or the model folder can't be served, now or later; the message says why and what to write."""


class EngineError(RuntimeError):
    """The engine failed and answers nothing any more; the process has to end."""


class Engine(Protocol):
    """What runs the model. Its coroutines are called on one event loop.

    An engine that breaks after it was ready tells whoever made it, which ends the pod (`Pod.lose`).
    """

    @property
    def ready(self) -> bool:
        """Whether the whole group has loaded, a real pass went through it, and it is still whole."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens of a request, prompt and answer together; `UNLIMITED` without a bound."""
        ...

    @property
    def cannot(self) -> frozenset[SamplingField]:
        """Fields of a request that it does not honour: a request that asks for one is refused by name."""
        ...

    def problem(self, request: Request) -> str | None:
        """Say what of a request it can't do though it honours each of its fields, and what to write; None for nothing.

        Such a request is refused in these words.
        """
        ...

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Yield the tokens of one request; closing the iterator cancels it. Raises EngineError."""
        ...

    def stats(self) -> Stats:
        """Tell what it is doing now."""
        ...

    async def start(self) -> None:
        """Load, and return when ready. Raises EngineError or Refused."""
        ...

    async def drain(self) -> None:
        """Return when no request is left."""
        ...

    async def stop(self) -> None:
        """Cancel what is left and end, on every rank of the group."""
        ...
