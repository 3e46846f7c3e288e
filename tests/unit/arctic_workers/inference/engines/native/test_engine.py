"""The engine in one process, its thread and all, over a random model."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest
import torch

from arctic_api.world import InferenceGroup
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights
from arctic_workers.inference.engine import UNLIMITED, EngineError, Output, Refused, Request, Sampling
from arctic_workers.inference.engines.native import engine as engines
from arctic_workers.inference.engines.native import group as groups
from arctic_workers.inference.engines.native import runner
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE, BlockManager
from arctic_workers.inference.engines.native.budget import StepTimes
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.group import bring_up
from arctic_workers.inference.engines.native.pipeline import Pipeline
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.engines.native.runner import Runner
from arctic_workers.inference.engines.native.scheduler import Chunk, Scheduler
from arctic_workers.inference.engines.native.step import Drawn, Part

MakeGroup = Callable[..., list[InferenceGroup]]
Started = Callable[..., AbstractAsyncContextManager[NativeEngine]]


@pytest.fixture
def started(make_group: MakeGroup) -> Started:
    @asynccontextmanager
    async def start(**spec: object) -> AsyncIterator[NativeEngine]:
        [group] = make_group(1, **spec)
        plan = plan_group(group)
        shares: list[float] = []

        def load(progress: Callable[[float], None]) -> groups.Rank:
            def note(share: float) -> None:
                shares.append(share)
                progress(share)

            return bring_up(plan, group, 0, on_loss=pytest.fail, on_stop=pytest.fail, progress=note)

        failures: list[Exception] = []
        engine = NativeEngine(plan, load, beat=lambda: None, on_failure=failures.append)
        await engine.start()
        assert engine.ready
        assert shares == sorted(shares)
        assert shares[-1] == engine.stats().loaded == 1
        try:
            yield engine
        finally:
            await engine.stop()
            assert not engine.ready
            assert failures == []

    return start


async def ask(engine: NativeEngine, prompt: list[int], count: int = 8, **sampling: object) -> list[Output]:
    request = Request(tuple(prompt), Sampling(count, **sampling))  # type: ignore[arg-type]
    return [output async for output in engine.generate(request)]


def prompts(count: int) -> list[list[int]]:
    return [[(index * 37 + place * 11) % 280 for place in range(1 + index * 9 % 61)] for index in range(count)]


async def test_tokens_do_not_depend_on_company_nor_on_room(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = {"temperature": 1.0, "top_p": 0.9, "logprobs": 2}
    async with started(batching={"tokenBudget": 256, "maxSequences": 1}) as engine:
        alone = [await ask(engine, prompt, temperature=0.0) for prompt in prompts(6)]
        sampled = [await ask(engine, prompt, seed=index, **hot) for index, prompt in enumerate(prompts(6))]
    assert len({output.token for outputs in alone for output in outputs}) > 15
    # A budget that cuts prompts into pieces, and so few blocks that sequences must make room for each other.
    monkeypatch.setattr(groups, "affordable_blocks", lambda *_, **__: 9)
    async with started(batching={"tokenBudget": 24, "maxSequences": 6}) as engine:
        assert engine.max_length == 9 * BLOCK_SIZE
        greedy = asyncio.gather(*(ask(engine, prompt, temperature=0.0) for prompt in prompts(6)))
        seeded = asyncio.gather(*(ask(engine, prompt, seed=i, **hot) for i, prompt in enumerate(prompts(6))))
        assert await greedy == alone
        assert await seeded == sampled
        await engine.drain()
        assert engine.stats().running == engine.stats().waiting == 0
        assert engine.stats().kv_cache_utilization == 0


async def test_endless_tokens_do_not_depend_on_company_nor_on_how_a_prompt_is_cut(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = {"window": 20, "sinks": 5, "maxLength": "unlimited"}
    asked = [(prompt, count) for prompt, count in zip(prompts(5), (90, 8, 60, 8, 90), strict=True)]
    asked.append((prompts(1)[0] * 600, 8))
    hot = {"temperature": 1.0, "logprobs": 2}
    async with started(attention=window, batching={"tokenBudget": 700, "maxSequences": 1}) as engine:
        alone = [await ask(engine, prompt, count, **hot) for prompt, count in asked]
    # Room for two that outgrow the window, of whose blocks little is left for others.
    monkeypatch.setattr(groups, "affordable_blocks", lambda *_, **__: 43)
    async with started(
        attention=window, batching={"tokenBudget": 24, "maxSequences": 6, "prefixCaching": True}
    ) as engine:
        assert engine.max_length == UNLIMITED
        assert await asyncio.gather(*(ask(engine, prompt, count, **hot) for prompt, count in asked)) == alone
        assert engine.stats().kv_cache_utilization == 0


async def test_an_endless_sequence_takes_no_more_memory_than_at_its_start(started: Started) -> None:
    window = {"window": 64, "sinks": 4, "maxLength": "unlimited"}

    def resident() -> int:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0])

    async with started(attention=window) as engine:
        taken, held = [], set()
        gc.collect()  # or what others left would be given back meanwhile
        async with aclosing(engine.generate(Request((1, 2, 3), Sampling(10**12, temperature=0.0)))) as outputs:
            for count in range(3000):
                await anext(outputs)
                if count >= 500 and count % 100 == 0:
                    taken.append(resident())
                    held.add(engine.stats().kv_cache_utilization)
                    [sequence] = engine._streams
                    assert len(sequence.tokens) <= 2
        assert max(taken) < 1.02 * taken[0]
        assert len(held) == 1
        await engine.drain()
        await ask(engine, [1], 2)
        assert engine.stats().kv_cache_utilization == 0


@pytest.mark.parametrize("others", [True, False])
async def test_an_endless_answer_waits_for_its_reader_and_keeps_its_bits(
    started: Started, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    """Without others, it alone has all of the cache's blocks."""
    monkeypatch.setattr(engines, "MOST_UNREAD", 40)
    monkeypatch.setattr(engines, "READ_AT_ONCE", 10)
    monkeypatch.setattr(engines, "PING", 0.01)
    schedule, turns = Scheduler.schedule, 0

    def counted(scheduler: Scheduler, free: int = 1) -> list[Chunk]:
        nonlocal turns
        turns += 1
        return schedule(scheduler, free)

    monkeypatch.setattr(Scheduler, "schedule", counted)
    window = {"window": 20, "sinks": 5, "maxLength": "unlimited"}
    asked = Request((1, 2, 3), Sampling(10**9, seed=5, logprobs=2))
    async with started(attention=window, batching={"maxSequences": 1 + others}) as engine:
        async with aclosing(engine.generate(asked)) as outputs:
            read = [await anext(outputs) for _ in range(150)]
        async with aclosing(engine.generate(asked)) as outputs:
            slow = [await anext(outputs)]
            [sequence] = engine._streams
            if others:
                await ask(engine, [4, 5], 200)
            await asyncio.to_thread(until, lambda: sequence.held)
            assert sequence.generated == 40
            before, since = turns, time.monotonic()
            await asyncio.to_thread(until, lambda: turns >= before + 5)  # passes while idle go on
            asked_again = turns - before
            pauses = (time.monotonic() - since) / engines.PING
            assert asked_again <= pauses + 2, "nobody keeps asking what there is to do"
            assert sequence.generated == 40
            assert engine.stats().running == 1
            slow += [await anext(outputs) for _ in range(149)]
        assert slow == read
        await engine.drain()
        await ask(engine, [1], 2)
        assert engine.stats().kv_cache_utilization == 0


async def test_tokens_tell_when_they_were_made_and_not_when_they_were_read(started: Started) -> None:
    async with started() as engine:
        async with aclosing(engine.generate(Request((1, 2, 3), Sampling(20)))) as outputs:
            read = [await anext(outputs)]
            await asyncio.to_thread(until, lambda: not engine._streams)
            over = time.monotonic()
            read += [output async for output in outputs]
        times = [output.made or over for output in read]
        assert len(set(times)) == 20, "one a step"
        assert times == sorted(times)
        assert (read[0].begun or over) < times[0] < times[-1] < over


def mixed_requests() -> list[Request]:
    """Prompts that begin alike, that repeat themselves, and that do neither, of two callers, greedy and seeded.

    Some count tokens, ban them for a while, or are told of their prompts.
    """
    system, words = [index * 7 % 280 for index in range(40)], [3, 1, 4, 1, 5]
    made = []
    for index in range(36):
        prompt = (system[: 8 + index], words * (2 + index % 5), prompts(12)[index % 12])[index % 3]
        hot = index % 4 == 3
        sampling = Sampling(
            20,
            temperature=0.7 * hot,
            top_k=5 * hot,
            seed=index,
            logprobs=2 if index % 5 == 0 else None,
            prompt_logprobs=1 if index % 7 == 0 else None,
            repetition_penalty=1.2 if index % 8 == 1 else 1.0,
            stop_tokens=frozenset(range(0, 280, 3)) if index % 6 == 1 else frozenset(),
            min_tokens=index % 4 * 5,
        )
        made.append(Request((*prompt, *[index // 12] * (index % 2)), sampling, index % 3, b"ab"[index % 2 :][:1]))
    return made


@pytest.mark.parametrize("caching", [True, "perKey"])
async def test_nothing_that_saves_work_changes_a_bit(
    started: Started, monkeypatch: pytest.MonkeyPatch, caching: bool | str
) -> None:
    async def answer(engine: NativeEngine, request: Request) -> list[Output]:
        return [output async for output in engine.generate(request)]

    plain = {"maxSequences": 1}
    async with started(batching=plain) as engine:
        alone = [await answer(engine, request) for request in mixed_requests()]
    monkeypatch.setattr(groups, "affordable_blocks", lambda *_, **__: 20)
    computed, rows = 0, {True: 0, False: 0}
    run = Runner.run

    def counted(self: Runner, parts: list[Part], x_TD: torch.Tensor | None) -> torch.Tensor:
        nonlocal computed
        computed += sum(len(part.tokens) for part in parts)
        for part in parts:
            rows[part.draws > 1] += part.draws
        return run(self, parts, x_TD)

    monkeypatch.setattr(Runner, "run", counted)
    # Tokens that cost nothing: whatever may be proposed is.
    monkeypatch.setattr(StepTimes, "observe", lambda times, tokens, _: OBSERVE(times, tokens, 1.0))
    sharing = {"prefixCaching": caching, "suffixDecoding": True}
    async with started(batching={"tokenBudget": 40, "maxSequences": 8, **sharing}) as engine:
        together = await asyncio.gather(*(answer(engine, request) for request in mixed_requests()))
        assert together == alone
        once = computed
        again = [await answer(engine, request) for request in mixed_requests()]
        assert again == alone
        assert rows[True] > 100
        assert computed - once < sum(len(request.prompt) + 20 for request in mixed_requests())
        assert engine.stats().kv_cache_utilization == 0


OBSERVE = StepTimes.observe


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


@pytest.mark.parametrize(("caching", "meet"), [(False, False), ("perKey", False), (True, True)])
def test_nothing_goes_from_one_key_to_another_unless_prompts_are_shared_by_all(
    make_group: MakeGroup, caching: bool | str, meet: bool
) -> None:
    """Proposals too come from what was answered to others, and are seen in an answer's time."""
    plan = plan_group(make_group(1, batching={"prefixCaching": caching, "suffixDecoding": True})[0])
    one, again, other = (
        engines._sequence(Request((1, 2), Sampling(1), caller=key), plan) for key in (b"a", b"a", b"b")
    )
    assert one.salt == again.salt
    assert (one.salt == other.salt) is meet
    assert one.shares is (caching is not False)


async def test_blocks_that_are_lost_are_seen_and_taken_back(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "PING", 0.05)
    async with started(batching={"prefixCaching": True}) as engine:
        before = await ask(engine, [5, 6, 7] * 10, 8, temperature=0.0)
        release = BlockManager.release
        monkeypatch.setattr(BlockManager, "release", lambda manager, table: table.clear())
        await ask(engine, [5, 6, 7], 8, temperature=0.0)
        monkeypatch.setattr(BlockManager, "release", release)
        async with asyncio.timeout(30):
            await asyncio.to_thread(until, lambda: engine.stats().lost_blocks > 0)
        assert "blocks were in disorder" in caplog.text
        assert engine.stats().kv_cache_utilization == 0
        assert await ask(engine, [5, 6, 7] * 10, 8, temperature=0.0) == before


async def test_passes_while_idle_leave_what_is_kept_alone_and_do_not_count(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "PING", 0.01)
    async with started(batching={"prefixCaching": True, "maxSequences": 1}) as engine:
        before = await ask(engine, [5, 6, 7] * 10, 8, temperature=0.0)
        collect, used = Pipeline.collect, []

        def looked_at(pipeline: Pipeline) -> list[Drawn]:
            used.append(engine.stats().kv_cache_utilization)
            return collect(pipeline)

        monkeypatch.setattr(Pipeline, "collect", looked_at)
        await asyncio.to_thread(until, lambda: len(used) >= 5)
        assert set(used) == {0.0}
        monkeypatch.setattr(Pipeline, "collect", collect)
        assert await ask(engine, [5, 6, 7] * 10, 8, temperature=0.0) == before


async def test_greedy_tokens_are_those_of_the_plain_model(started: Started, make_group: MakeGroup) -> None:
    plan = plan_group(make_group(1)[0])
    model = ArcticModel(plan.config)
    load_weights(model, plan.folder)
    async with started(quantization={"weights": "fp32", "kvCache": "fp32"}) as engine:
        for prompt in prompts(3):
            outputs = await ask(engine, prompt, 16, temperature=0.0, logprobs=3)
            tokens = [output.token for output in outputs]
            with torch.inference_mode():
                logprobs_TV = model(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert logprobs_TV.argmax(-1).tolist() == tokens
            for output, row_V in zip(outputs, logprobs_TV, strict=True):
                assert output.logprob == pytest.approx(float(row_V.max()), abs=1e-3)
                assert [token for token, _ in output.top] == row_V.topk(3).indices.tolist()


async def test_a_prompts_probabilities_are_those_of_the_plain_model(started: Started, make_group: MakeGroup) -> None:
    plan = plan_group(make_group(1)[0])
    model = ArcticModel(plan.config)
    load_weights(model, plan.folder)
    async with started(quantization={"weights": "fp32", "kvCache": "fp32"}) as engine:
        for prompt in ([7], prompts(6)[5]):
            outputs = await ask(engine, prompt, 2, temperature=0.0, prompt_logprobs=2)
            assert not outputs[1].prompt
            first, *others = outputs[0].prompt
            assert first == Output(prompt[0])
            assert [output.token for output in others] == prompt[1:]
            with torch.inference_mode():
                logprobs_TV = model(torch.tensor([prompt]))[0].log_softmax(-1)
            for output, row_V in zip(others, logprobs_TV[:-1], strict=True):
                assert output.logprob == pytest.approx(float(row_V[output.token]), abs=1e-3)
                assert [token for token, _ in output.top] == row_V.topk(2).indices.tolist()


ADJUSTED = (
    {"temperature": 0.0, "prompt_logprobs": 1},
    {"temperature": 0.0, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.4, "min_p": 0.05},
    {"temperature": 0.0, "logit_bias": ((17, 2.0), (40, -3.0)), "prompt_logprobs": 0, "logprobs": 1},
    {"temperature": 0.0, "min_tokens": 6, "stop_tokens": frozenset(range(250))},
)


async def test_adjusted_tokens_and_a_prompts_do_not_depend_on_company_nor_on_room(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(prompt, ADJUSTED[index % len(ADJUSTED)]) for index, prompt in enumerate(prompts(10))]
    async with started(batching={"tokenBudget": 256, "maxSequences": 1}) as engine:
        alone = [await ask(engine, prompt, 12, **sampling) for prompt, sampling in asked]
    monkeypatch.setattr(groups, "affordable_blocks", lambda *_, **__: 9)
    monkeypatch.setattr(runner, "LOGITS_AT_ONCE", 5)
    async with started(batching={"tokenBudget": 24, "maxSequences": 6}) as engine:
        assert await asyncio.gather(*(ask(engine, prompt, 12, **sampling) for prompt, sampling in asked)) == alone


async def test_a_penalty_counts_the_answer_and_a_minimum_keeps_it_going(started: Started) -> None:
    async with started() as engine:
        plain = [output.token for output in await ask(engine, [5, 6, 7], 100, temperature=0.0)]
        assert len(set(plain)) < 100, "it repeats itself"
        varied = [o.token for o in await ask(engine, [5, 6, 7], 100, temperature=0.0, presence_penalty=1000.0)]
        assert len(set(varied)) == 100
        unlike = [o.token for o in await ask(engine, plain, 8, temperature=0.0, repetition_penalty=1e6)]
        assert not set(unlike) & set(plain)
        stops = frozenset({plain[0], plain[1]})
        cut = await ask(engine, [5, 6, 7], 24, temperature=0.0, stop_tokens=stops, min_tokens=5)
        assert not stops & {output.token for output in cut[:5]}


async def test_a_request_ends_with_a_stop_token_or_its_length(started: Started) -> None:
    async with started() as engine:
        whole = await ask(engine, [5, 6, 7], 8, temperature=0.0)
        assert [output.finish_reason for output in whole] == [None] * 7 + ["length"]
        stop = whole[3].token
        first = next(index for index, output in enumerate(whole) if output.token == stop)
        cut = await ask(engine, [5, 6, 7], 8, temperature=0.0, stop_tokens=frozenset({stop}))
        assert [output.token for output in cut] == [output.token for output in whole[: first + 1]]
        assert cut[-1].finish_reason == "stop"


async def test_a_client_that_leaves_gives_its_room_back(started: Started) -> None:
    async with started() as engine:
        async with aclosing(engine.generate(Request((1, 2, 3), Sampling(200)))) as outputs:
            await anext(outputs)
            assert engine.stats().running == 1
        await engine.drain()
        await ask(engine, [1], 2)
        assert engine.stats().kv_cache_utilization == 0


async def test_an_answer_that_is_whole_and_not_yet_read_waits_for_nothing(started: Started) -> None:
    """Or readers who take their time would have others refused, and groups added."""
    async with started() as engine:
        async with aclosing(engine.generate(Request((1, 2, 3), Sampling(20)))) as outputs:
            await anext(outputs)
            await asyncio.to_thread(until, lambda: not engine._streams)
            assert engine.stats().waiting == 0
            assert engine.stats().running == 1, "a drain waits for it"
            assert len([output async for output in outputs]) == 19
        assert engine.stats().running == 0


async def test_what_is_wrong_with_a_model_is_told_at_the_start(make_group: MakeGroup) -> None:
    [group] = make_group(1)
    plan = plan_group(group)

    def refuse(progress: Callable[[float], None]) -> groups.Rank:
        raise Refused("the weights are cut short")

    engine = NativeEngine(plan, refuse, beat=lambda: None, on_failure=lambda error: None)
    with pytest.raises(Refused, match="cut short"):
        await engine.start()
    with pytest.raises(EngineError, match="not ready"):
        await ask(engine, [1])


async def test_more_tensor_ranks_than_cores_are_refused(started: Started) -> None:
    with pytest.raises(Refused, match=r"parallelism\.tensor is 2 and this pod has 1 core, .* write at most 1"):
        async with started(parallelism={"tensor": 2}):
            pass


def test_a_pipeline_longer_than_the_model_is_refused(make_group: MakeGroup) -> None:
    with pytest.raises(Refused, match="pipeline is 5 and the model has 4 layers"):
        plan_group(make_group(5)[0])


def changed(group: InferenceGroup, folder: Path, **config: object) -> InferenceGroup:
    """The group with another model: its config.json alone."""
    written = json.loads((Path(group.model_folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    return group.model_copy(update={"model_folder": str(folder)})


def test_more_than_the_models_positions_is_refused_and_the_default_gives_way(make_group: MakeGroup) -> None:
    assert plan_group(make_group(1)[0]).max_length == 256
    assert plan_group(make_group(1, attention={"maxLength": 256})[0]).max_length == 256
    with pytest.raises(Refused, match=r"the model has 256 positions; write attention\.maxLength: 256 or less"):
        plan_group(make_group(1, attention={"maxLength": 257})[0])
