"""The engine by itself, over a random Arctic: what it does with a request, token by token."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
from groups_of_vllm import make_group
from models import greedy_answers

from arctic_workers.inference.engine import Engine, Output, Request, Sampling
from arctic_workers.inference.engines.vllm.arguments import CPU, arguments, cpu_environment, environment
from arctic_workers.inference.model import read_model

PROMPT = (72, 101, 108, 108, 111, 44)
NEAR = 1e-3
"""What logprobs may differ by from our own model's: sums are taken in another order."""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own, and those of what it imports
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """A group of one."""
    [world] = make_group(model_folder, tmp_path_factory.mktemp("group"))
    cpu = CPU(memory=1 << 30, cores=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment(world, "127.0.0.1") | cpu_environment(world, cpu)).items():
            patch.setenv(name, value)
        from arctic_workers.inference.engines.vllm.engine import VLLMEngine

        told = arguments(world, 0, read_model(world), cpu)
        made = VLLMEngine(world, told, on_loss=pytest.fail, on_stop=pytest.fail, beat=lambda: None)
        assert (made.ready, made.stats().loaded) == (False, 0.0)
        await made.start()
        yield made
        await made.stop()
        assert not made.ready


async def answer(engine: Engine, prompt: tuple[int, ...] = PROMPT, **sampling: object) -> list[Output]:
    request = Request(prompt, Sampling(**({"max_tokens": 16, "temperature": 0.0} | sampling)))
    return [output async for output in engine.generate(request)]


async def test_greedy_tokens_and_their_logprobs_are_the_models(engine: Engine, model_folder: Path) -> None:
    [expected] = greedy_answers(model_folder, [PROMPT], 16)
    assert expected.margin > NEAR
    outputs = await answer(engine, logprobs=2)
    assert tuple(output.token for output in outputs) == expected.answer
    assert [output.logprob for output in outputs] == pytest.approx(expected.logprobs, abs=NEAR)
    assert all(output.top[0] == (output.token, output.logprob) and len(output.top) == 2 for output in outputs)
    assert [output.finish_reason for output in outputs] == [None] * 15 + ["length"]


async def test_the_chosen_tokens_logprob_comes_alone_where_no_others_are_asked_for(engine: Engine) -> None:
    outputs = await answer(engine, logprobs=0, temperature=1.0, seed=3)
    assert all(output.logprob is not None and output.top == () for output in outputs)
    assert all(output.logprob is None for output in await answer(engine))


async def test_a_stop_token_is_the_last_one(engine: Engine) -> None:
    tokens = [output.token for output in await answer(engine)]
    stop = next(token for place, token in enumerate(tokens) if place > 3 and token not in tokens[:place])
    outputs = await answer(engine, stop_tokens=frozenset({stop}))
    assert [output.token for output in outputs] == tokens[: tokens.index(stop) + 1]
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize("seed", [7, -1, -(1 << 63)])
async def test_a_seed_gives_the_same_tokens_again(engine: Engine, seed: int) -> None:
    asked = {"temperature": 1.0, "seed": seed, "max_tokens": 24}
    first, other = await asyncio.gather(answer(engine, **asked), answer(engine, **asked | {"seed": seed + 1}))
    assert await answer(engine, **asked) == first
    assert other != first


async def test_candidates_are_cut_as_asked(engine: Engine) -> None:
    greedy = await answer(engine)
    assert await answer(engine, temperature=1.0, top_k=1, seed=1) == greedy
    assert await answer(engine, temperature=1.0, top_p=1e-6, seed=1) == greedy


async def test_a_request_that_is_cancelled_leaves_nothing_behind(engine: Engine) -> None:
    tokens = engine.generate(Request(PROMPT, Sampling(200, temperature=0.0)))
    await anext(tokens)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.loaded) == (1, 0, 1.0)
    assert stats.kv_cache_utilization > 0
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    await tokens.aclose()
    await draining
    assert (engine.stats().running, engine.stats().waiting, engine.stats().kv_cache_utilization) == (0, 0, 0.0)
    assert len(await answer(engine)) == 16


async def test_an_answer_that_is_made_and_not_read_waits_for_nothing(engine: Engine) -> None:
    async with aclosing(engine.generate(Request(PROMPT, Sampling(16, temperature=0.0)))) as tokens:
        read = [await anext(tokens)]
        await answer(engine, max_tokens=64)
        assert (engine.stats().running, engine.stats().waiting) == (1, 0)
        over = time.monotonic()
        read += [output async for output in tokens]
    assert len(read) == 16
    assert all(output.made is not None and output.made < over for output in read)


async def test_more_than_run_at_once_wait(engine: Engine) -> None:
    asked = [asyncio.create_task(answer(engine, max_tokens=64)) for _ in range(6)]
    while engine.stats().running < 4:  # noqa: ASYNC110 - what is waited for is in another process
        await asyncio.sleep(0.01)
    assert engine.stats().waiting == 2
    assert len({tuple(output.token for output in each) for each in await asyncio.gather(*asked)}) == 1


async def test_the_whole_length_can_be_used(engine: Engine) -> None:
    assert engine.max_length == 256
    assert len(await answer(engine, max_tokens=256 - len(PROMPT))) == 256 - len(PROMPT)
