"""One suite for every engine, each as one group of two pods on the local cluster, through the gateway.

The tests of an engine share its service, and stand in the order in which they may harm it.
"""

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import conformance
import pytest
from conformance import SHORT, Check, Endpoint
from models import Greedy
from soak import Soak
from tokenizers import Tokenizer

from arctic_api.engine_options import EngineName

ROUNDING = 1e-3
"""Of a logprob: sums in another order."""

pytestmark = pytest.mark.timeout(900)  # a group of an engine may take minutes to start


async def test_greedy_answers_are_the_models_own(
    endpoint: Endpoint, answers: list[Greedy], tokenizer: Tokenizer
) -> None:
    """So they are the same on every engine."""
    async with endpoint.client() as client:
        for expected in answers[1:]:
            answer = await client.completions.create(
                model=endpoint.name,
                prompt=list(expected.prompt),
                max_tokens=len(expected.answer),
                temperature=0,
                logprobs=0,
            )
            choice = answer.choices[0]
            # A trailing character whose bytes are not all there is left out of an answer.
            assert choice.text == tokenizer.decode(list(expected.answer)).rstrip("\ufffd")
            assert choice.logprobs is not None
            assert choice.logprobs.token_logprobs == pytest.approx(expected.logprobs, abs=ROUNDING)


async def test_an_answer_ends_with_a_stop_token(endpoint: Endpoint, answers: list[Greedy]) -> None:
    expected = answers[0]
    async with endpoint.client() as client:
        answer = await client.completions.create(
            model=endpoint.name, prompt=list(expected.prompt), max_tokens=64, temperature=0, logprobs=0
        )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(expected.answer), "the stop token counts"
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or []) == len(expected.answer), "and is as likely as the others"


@pytest.mark.parametrize("check", [*SHORT, conformance.a_queue_that_is_too_long_is_refused], ids=lambda it: it.__name__)
async def test_the_service_conforms(endpoint: Endpoint, check: Check) -> None:
    await check(endpoint)


async def test_traffic_of_every_kind_is_answered_and_leaves_nothing_behind(
    endpoint: Endpoint, engine: EngineName, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    soaked = await Soak(endpoint, pytestconfig.getoption("--seed")).run(pytestconfig.getoption("--requests"))
    with capsys.disabled():
        print(json.dumps({"engine": engine, **soaked.figures()}), flush=True)
    assert soaked.answered > 0
    assert (soaked.failed_wellformed, soaked.wrongly_refused, soaked.cache_left) == ([], [], 0)
    if engine == "native":  # the others' arithmetic depends on the company
        assert soaked.changed == []


async def test_no_request_fails_while_another_group_takes_over(endpoint: Endpoint, served: dict[str, Any]) -> None:
    change = copy.deepcopy(served)
    change["spec"]["attention"]["maxLength"] -= 16
    await conformance.no_request_fails_while_another_group_takes_over(endpoint, change)


@pytest.mark.parametrize(
    "loss",
    [conformance.a_lost_pod_ends_and_remakes_its_group, conformance.a_killed_rank_ends_and_remakes_its_group],
    ids=lambda it: it.__name__,
)
async def test_a_group_comes_back(endpoint: Endpoint, answers: list[Greedy], loss: Callable[[Endpoint], None]) -> None:
    prompt = list(answers[1].prompt)
    before = await endpoint.greedy(prompt, len(answers[1].answer))
    await asyncio.to_thread(loss, endpoint)
    assert await endpoint.greedy(prompt, len(answers[1].answer)) == before
