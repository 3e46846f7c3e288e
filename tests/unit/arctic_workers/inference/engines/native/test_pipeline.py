"""All ranks of a pipeline in one process, a thread each, over real connections: what rank 0's engine makes of them."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
import torch

from arctic_api.world import InferenceGroup
from arctic_model.model import ArcticModel
from arctic_workers.inference.engine import EngineError, Output, Request, Sampling
from arctic_workers.inference.engines.native import group as groups
from arctic_workers.inference.engines.native.budget import StepTimes
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.group import Rank, bring_up
from arctic_workers.inference.engines.native.kernel import rank
from arctic_workers.inference.engines.native.kernel.library import Shape, library, multiplies_bf16
from arctic_workers.inference.engines.native.link import PeerLost
from arctic_workers.inference.engines.native.pipeline import Kind, follow
from arctic_workers.inference.engines.native.plan import Plan, plan_group
from arctic_workers.inference.engines.native.runner import load_slice
from arctic_workers.inference.engines.native.scheduler import Chunk, Scheduler
from arctic_workers.inference.engines.native.sequence import Sequence
from arctic_workers.inference.engines.native.suffix import Drafter

HOT = {"temperature": 1.0, "top_p": 0.9, "logprobs": 2}


@dataclass
class Group:
    """A running pipeline, and what its later ranks have seen."""

    engine: NativeEngine
    kinds: list[Kind] = field(default_factory=list)
    """What came to the last rank."""
    rows: list[int] = field(default_factory=list)
    """Tokens of each step of the last rank."""
    ranks: dict[int, Rank] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)


MakePipeline = Callable[..., AbstractAsyncContextManager[Group]]


def serve(group: Group, plan: Plan, world: InferenceGroup, rank: int) -> None:
    """Be a later rank until the end."""
    made = bring_up(plan, world, rank, on_loss=lambda _: None, on_stop=lambda: None, progress=lambda _: None)
    group.ranks[rank] = made
    assert made.link is not None
    assert made.heartbeats is not None
    last = rank == plan.ranks - 1
    run = made.runner.run

    def counted(parts, x_TD):  # type: ignore[no-untyped-def]
        group.rows.append(sum(len(part.tokens) for part in parts))
        return run(parts, x_TD)

    if last:
        made.runner.run = counted  # type: ignore[method-assign]
    try:
        for kind in follow(
            made.runner, made.link, last=last, hidden_size=plan.config.hidden_size, wire=plan.pipeline_format
        ):
            if last:
                group.kinds.append(kind)
    except PeerLost:
        made.link.close()
    made.heartbeats.stop()


@pytest.fixture
def pipeline(make_group: Callable[..., list[InferenceGroup]]) -> MakePipeline:
    @asynccontextmanager
    async def start(ranks: int, **spec: object) -> AsyncIterator[Group]:
        worlds = make_group(ranks, **spec)
        plan = plan_group(worlds[0])

        def load(progress: Callable[[float], None]) -> Rank:
            made = bring_up(plan, worlds[0], 0, on_loss=lambda _: None, on_stop=pytest.fail, progress=progress)
            group.ranks[0] = made
            return made

        failures: list[Exception] = []
        group = Group(NativeEngine(plan, load, beat=lambda: None, on_failure=failures.append), failures=failures)
        followers = [threading.Thread(target=serve, args=(group, plan, worlds[rank], rank)) for rank in range(1, ranks)]
        for follower in followers:
            follower.start()
        await group.engine.start()
        try:
            yield group
        finally:
            await group.engine.stop()
            if (link := group.ranks[0].link) is not None:
                link.close()  # as the end of a process does that has failed
            for follower in followers:
                await asyncio.to_thread(follower.join)

    return start


async def ask(engine: NativeEngine, prompt: list[int], count: int = 8, **sampling: object) -> list[Output]:
    request = Request(tuple(prompt), Sampling(count, **sampling))  # type: ignore[arg-type]
    return [output async for output in engine.generate(request)]


def begin_with(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines begin once so many requests wait, however long they take to come."""
    schedule, begun = Scheduler.schedule, False

    def together(scheduler: Scheduler, free: int = 1) -> list[Chunk]:
        nonlocal begun
        begun = begun or scheduler.waiting >= count
        return schedule(scheduler, free) if begun else []

    monkeypatch.setattr(Scheduler, "schedule", together)


async def ask_all(engine: NativeEngine) -> list[list[Output]]:
    """Greedy and seeded requests together, with prompts of one to sixty tokens."""
    prompts = [[(index * 37 + place * 11) % 280 for place in range(1 + index * 9 % 61)] for index in range(8)]
    return await asyncio.gather(
        *(ask(engine, prompt, temperature=0.0) for prompt in prompts),
        *(ask(engine, prompt, seed=index, **HOT) for index, prompt in enumerate(prompts)),
    )


async def test_any_number_of_ranks_gives_the_tokens_of_one_to_the_bit(pipeline: MakePipeline) -> None:
    batching = {"tokenBudget": 48, "maxSequences": 12}
    async with pipeline(1, batching=batching) as group:
        alone = await ask_all(group.engine)
    assert len({output.token for outputs in alone for output in outputs}) > 15
    for ranks in (2, 3):
        async with pipeline(ranks, batching=batching) as group:
            assert await ask_all(group.engine) == alone
            assert group.engine.stats().kv_cache_utilization == 0
        assert group.failures == []
        assert group.kinds[1] is Kind.READY, "after one real pass"
        assert group.kinds[-1] is Kind.STOP


@pytest.fixture
def two_threads() -> Iterator[None]:
    """One for each tensor rank."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("whole_experts", "said"), [(False, "a slice of each expert"), (True, "experts of its own")])
async def test_tensor_ranks_in_each_pod_change_no_bit(
    pipeline: MakePipeline, whole_experts: bool, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with pipeline(1, batching={"maxSequences": 1}) as group:
        alone = await ask_all(group.engine)
    async with pipeline(
        2,
        parallelism={"pipeline": 2, "tensor": 2},
        batching={"tokenBudget": 48, "maxSequences": 12},
        engine={"name": "native", "options": {"enable_expert_parallel": whole_experts}},
    ) as group:
        assert await ask_all(group.engine) == alone
    assert group.failures == []
    if library() is not None:
        assert caplog.text.count(f"each has {said}") == 2


async def test_shared_prompts_and_proposals_change_no_bit_while_steps_are_on_their_way(
    pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask_alike(engine: NativeEngine) -> list[list[Output]]:
        """Prompts that begin alike and repeat themselves."""
        prompts = [[5, 6, 7] * 8 + [index % 3] * (index % 5) for index in range(12)]
        return await asyncio.gather(
            *(ask(engine, prompt, 24, temperature=index % 4 * 0.2) for index, prompt in enumerate(prompts))
        )

    plain = {"maxSequences": 1}
    async with pipeline(1, batching=plain) as group:
        alone = await ask_alike(group.engine)
    proposed = 0
    draft = Drafter.propose

    def counted(self: Drafter, sequences: list[Sequence], most: int) -> dict[Sequence, list[int]]:
        nonlocal proposed
        drafts = draft(self, sequences, most)
        proposed += sum(map(len, drafts.values()))
        return drafts

    monkeypatch.setattr(Drafter, "propose", counted)
    # Tokens that cost nothing: whatever may be proposed is.
    observe = StepTimes.observe
    monkeypatch.setattr(StepTimes, "observe", lambda times, tokens, _: observe(times, tokens, 1.0))
    sharing = {"prefixCaching": True, "suffixDecoding": True}
    async with pipeline(2, batching={"tokenBudget": 48, "maxSequences": 6, **sharing}) as group:
        assert await ask_alike(group.engine) == alone
        assert await ask_alike(group.engine) == alone
        assert group.engine.stats().kv_cache_utilization == 0
    assert proposed > 50
    assert group.failures == []


def mixed(count: int, seed: int) -> list[Request]:
    """Requests of all kinds, many of whose prompts begin alike or repeat themselves."""
    random = Random(seed)
    stems = [random.choices(range(280), k=random.choice((16, 32, 50))) for _ in range(5)]
    made = []
    for number in range(count):
        stem = random.choice(stems)
        prompt = random.choice(
            (
                stem + random.choices(range(280), k=random.randint(0, 20)),
                stem[:5] * random.randint(1, 12),
                random.choices(range(280), k=random.randint(1, 120)),
            )
        )
        ways: tuple[dict[str, object], ...] = (
            {"temperature": 0.0},
            {"temperature": 0.0, "logprobs": 2, "prompt_logprobs": 1},
            {"seed": number, **HOT},
            {"seed": number, "top_k": 5, "min_p": 0.02, "logit_bias": ((7, 2.0),)},
            {"temperature": 0.3, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
            {"stop_tokens": frozenset(range(0, 280, 9)), "min_tokens": 3, "seed": number},
        )
        how = random.choice(ways)
        sampling = Sampling(random.randint(1, 16), **how)  # type: ignore[arg-type]
        made.append(Request(tuple(prompt), sampling, caller=bytes([number % 3]), priority=random.randint(-1, 1)))
    return made


@pytest.mark.parametrize("kept", ["bf16", "fp8"])
async def test_each_of_many_mixed_requests_gets_the_bits_that_it_gets_alone(
    pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, kept: str
) -> None:
    """Preemption, prompts in pieces, kept blocks, proposals, priorities, two ranks and clients that leave."""
    requests = mixed(pytestconfig.getoption("--requests"), pytestconfig.getoption("--seed"))

    async def answer(engine: NativeEngine, request: Request, most: int = 1000) -> list[Output]:
        got = []
        async with aclosing(engine.generate(request)) as outputs:
            async for output in outputs:
                got.append(output)
                if len(got) == most:
                    break
        return got

    formats = {"kvCache": kept}
    async with pipeline(1, quantization=formats, batching={"maxSequences": 1, "prefixCaching": False}) as group:
        alone = [await answer(group.engine, request) for request in requests]
    observe = StepTimes.observe
    monkeypatch.setattr(StepTimes, "observe", lambda times, tokens, _: observe(times, tokens, 1.0))
    monkeypatch.setattr(groups, "affordable_blocks", lambda *_, **__: 24)
    preempted = 0
    preempt = Scheduler._preempt

    def counted(self: Scheduler, sequence: Sequence) -> None:
        nonlocal preempted
        preempted += 1
        preempt(self, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", counted)
    begin_with(len(requests), monkeypatch)
    sharing = {"prefixCaching": "perKey", "suffixDecoding": True}
    batching = {"tokenBudget": 40, "maxSequences": 12, **sharing}
    async with pipeline(2, quantization=formats, batching=batching) as group:
        leaving = [answer(group.engine, request, 2) for request in requests[::5]]
        got, left = await asyncio.gather(
            asyncio.gather(*(answer(group.engine, request) for request in requests)), asyncio.gather(*leaving)
        )
        assert got == alone
        assert left == [outputs[:2] for outputs in alone[::5]]
        await group.engine.drain()
        assert group.engine.stats().kv_cache_utilization == 0
        assert group.engine.stats().lost_blocks == 0
    assert preempted > len(requests) / 20
    assert group.failures == []


async def test_ranks_on_one_machine_share_out_what_all_of_their_weights_leave_of_its_memory(
    pipeline: MakePipeline, make_group: Callable[..., list[InferenceGroup]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_group(make_group(3)[0])
    left = 100 * plan.block_bytes(0)
    loading, loaded = 3, threading.Lock()

    def counted(*arguments: object) -> ArcticModel:
        nonlocal loading
        made = load_slice(*arguments)  # type: ignore[arg-type]
        with loaded:
            loading -= 1
        return made

    monkeypatch.setattr(groups, "load_slice", counted)
    monkeypatch.setattr(groups, "available_memory", lambda: left * (1 + loading))
    async with pipeline(3) as group:
        [count] = {rank.blocks for rank in group.ranks.values()}
        taken = sum(count * plan.block_bytes(rank) for rank in range(3))
        assert 0.5 * plan.memory_fraction * left < taken <= plan.memory_fraction * left


async def test_sequences_that_generate_are_in_as_many_steps_as_there_are_ranks(
    pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(8, monkeypatch)
    async with pipeline(2) as group:
        await asyncio.gather(*(ask(group.engine, [token], 40, temperature=0.0) for token in range(8)))
    # The prompts; each of the other 39 tokens in two steps. A single row is a pass while idle.
    assert [rows for rows in group.rows if rows > 1] == [8] + [4] * (2 * 39)


in_bf16 = pytest.mark.skipif(
    not multiplies_bf16(), reason="this processor multiplies no bf16, or there is no code for it"
)


@in_bf16
async def test_rows_in_bf16_are_what_a_manifest_asks_for(
    pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Shape] = []

    def noted(*sizes: int) -> Shape:
        told.append(Shape(*sizes))
        return told[-1]

    monkeypatch.setattr(rank, "Shape", noted)
    for asked in ({}, {"options": {"row_format": "bf16"}}):
        async with pipeline(2, engine={"name": "native"} | asked):
            pass
    assert [shape.rounds for shape in told] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline_format": "bf16"},
        {"pipeline_format": "fp8"},
        pytest.param({"row_format": "bf16"}, marks=in_bf16),
    ],
    ids=str,
)
async def test_a_narrow_format_is_as_invariant(pipeline: MakePipeline, options: dict[str, str]) -> None:
    engine = {"name": "native", "options": options}
    async with pipeline(2, engine=engine, batching={"maxSequences": 1}) as group:
        alone = await ask_all(group.engine)
    async with pipeline(2, engine=engine, batching={"tokenBudget": 24, "maxSequences": 12}) as group:
        assert await ask_all(group.engine) == alone


async def test_a_client_that_leaves_while_its_token_is_on_its_way_gives_its_room_back(pipeline: MakePipeline) -> None:
    async with pipeline(3) as group:
        engine = group.engine
        expected = await ask(engine, [9, 8, 7], 30, temperature=0.0)
        other = asyncio.create_task(ask(engine, [9, 8, 7], 30, temperature=0.0))
        for prompt in ([1], [2, 3], [4] * 50):
            async with aclosing(engine.generate(Request(tuple(prompt), Sampling(200)))) as outputs:
                await anext(outputs)
        assert await other == expected
        await engine.drain()
        assert await ask(engine, [9, 8, 7], 30, temperature=0.0) == expected
        assert engine.stats().kv_cache_utilization == 0
        # And the end may come while steps are on their way: who asks then is never answered.
        asked = asyncio.create_task(ask(engine, [5], 200))
        while not engine.stats().running:  # noqa: ASYNC110 - another thread's work
            await asyncio.sleep(0)
    assert group.kinds[-1] is Kind.STOP
    asked.cancel()


async def test_a_lost_rank_ends_every_request(pipeline: MakePipeline) -> None:
    async with pipeline(3, attention={"window": 20, "sinks": 4, "maxLength": "unlimited"}) as group:
        asked = asyncio.create_task(ask(group.engine, [5], 10**9))
        while not group.engine.stats().running:  # noqa: ASYNC110 - another thread's work
            await asyncio.sleep(0)
        later = group.ranks[2]
        assert later.link is not None
        later.link.close()
        with pytest.raises(EngineError, match="failed"):
            await asked
        assert not group.engine.ready
    assert [type(failure) for failure in group.failures] == [PeerLost]
