"""Requests as vLLM's own, by the release in this environment: no engine runs."""

import re

import pytest

from arctic_workers.inference.engine import Sampling

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own, and those of what it imports


def test_only_as_many_stop_tokens_are_held_back_as_vllm_has_room_for() -> None:
    from arctic_workers.inference.engines.vllm.translation import MOST_HELD_BACK, problem, sampling_params

    most = frozenset(range(MOST_HELD_BACK))
    more = most | {MOST_HELD_BACK}
    for sampling in (Sampling(8, stop_tokens=most, min_tokens=1), Sampling(8, stop_tokens=more)):
        assert problem(sampling) is None
        assert sampling_params(sampling).all_stop_token_ids == sampling.stop_tokens
    said = problem(Sampling(8, stop_tokens=more, min_tokens=1))
    assert said is not None
    assert re.search(r"at most 128 .* and this request has 129; write fewer, or min_tokens: 0", said)


def test_vllm_has_room_for_so_many() -> None:
    from vllm.v1.worker.gpu.sample.logit_bias import MAX_NUM_STOP_TOKEN_IDS

    from arctic_workers.inference.engines.vllm.translation import MOST_HELD_BACK

    assert MAX_NUM_STOP_TOKEN_IDS == MOST_HELD_BACK
