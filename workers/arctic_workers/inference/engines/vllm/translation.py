"""Requests of ours as vLLM's, and its answers as ours."""

from collections.abc import Iterator

from vllm import SamplingParams
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from arctic_workers.inference.engine import EngineError, FinishReason, Output, Sampling

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_SEED_BITS = (1 << 63) - 1


def sampling_params(sampling: Sampling) -> SamplingParams:
    """Return vLLM's own for a request: only our stop tokens end it."""
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        # vLLM takes -1 as no seed at all.
        seed=sampling.seed & _SEED_BITS,
        logprobs=sampling.logprobs,
        stop_token_ids=sorted(sampling.stop_tokens),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def outputs(completion: CompletionOutput, sampling: Sampling) -> Iterator[Output]:
    """Yield the tokens that are new in an answer. Raises EngineError where vLLM gave up on it."""
    reason = completion.finish_reason
    if reason is not None and reason not in _REASONS:
        raise EngineError(f"vLLM ended a request with {reason!r}; its log says why")
    last = len(completion.token_ids) - 1
    for place, token in enumerate(completion.token_ids):
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if sampling.logprobs is not None and completion.logprobs:
            found = {each: value.logprob for each, value in completion.logprobs[place].items()}
            logprob, top = found[token], _likeliest(found, sampling.logprobs)
        yield Output(token, logprob, top, _REASONS[reason] if reason is not None and place == last else None)


def _likeliest(logprobs: dict[int, float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest; vLLM adds the chosen token where it is none of them."""
    return tuple(sorted(logprobs.items(), key=lambda item: -item[1])[:count])
