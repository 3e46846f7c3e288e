"""Requests of ours as vLLM's, and its answers as ours."""

from collections.abc import Iterator, Mapping, Sequence

from vllm import SamplingParams
from vllm.logprobs import Logprob, PromptLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from arctic_workers.inference.engine import EngineError, FinishReason, Output, Sampling

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_SEED_BITS = (1 << 63) - 1
MOST_HELD_BACK = 128
"""Stop tokens of a request that may not come before others. With more, vLLM's ranks on GPUs fail, and all requests with
them (0.33: `v1/worker/gpu/sample/logit_bias.py`)."""


def problem(sampling: Sampling) -> str | None:
    """Say what would end vLLM, and what to write; None if nothing."""
    if not sampling.min_tokens or len(sampling.stop_tokens) <= MOST_HELD_BACK:
        return None
    return (
        f"vLLM holds back at most {MOST_HELD_BACK} stop tokens until min_tokens are there, and this request has "
        f"{len(sampling.stop_tokens)}; write fewer, or min_tokens: 0"
    )


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
        prompt_logprobs=sampling.prompt_logprobs,
        min_p=sampling.min_p,
        min_tokens=sampling.min_tokens,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        stop_token_ids=sorted(sampling.stop_tokens),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def prompt_outputs(prompt: Sequence[int], told: PromptLogprobs | None, sampling: Sampling) -> tuple[Output, ...]:
    """Return the prompt's tokens as vLLM tells them, all with the first token of the answer; of the first nothing."""
    count = sampling.prompt_logprobs
    if count is None or not told:
        return ()
    return tuple(
        Output(token, found[token].logprob, _likeliest(_values(found), count)) if found else Output(token)
        for token, found in zip(prompt, told, strict=True)
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
            found = _values(completion.logprobs[place])
            logprob, top = found[token], _likeliest(found, sampling.logprobs)
        yield Output(token, logprob, top, _REASONS[reason] if reason is not None and place == last else None)


def _values(logprobs: Mapping[int, Logprob]) -> dict[int, float]:
    return {token: value.logprob for token, value in logprobs.items()}


def _likeliest(logprobs: dict[int, float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest; vLLM adds the chosen token where it is none of them."""
    return tuple(sorted(logprobs.items(), key=lambda item: -item[1])[:count])
