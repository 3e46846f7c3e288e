"""The engine over a stand-in of the LLM API, which has the published signatures and refuses what is not in them."""

import asyncio
import importlib
import sys
import types
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from models import write_plain_model
from mpi_pods import STAND_IN

from arctic_api.inference import ArcticInferenceSpec
from arctic_workers.inference.engine import EngineError, Output, Refused, Request, Sampling, Stats
from arctic_workers.inference.engines import tensorrt_llm
from arctic_workers.inference.engines.tensorrt_llm import engine as engines
from arctic_workers.inference.engines.tensorrt_llm.arguments import plan_arguments
from arctic_workers.inference.engines.tensorrt_llm.checkpoint import read_stored
from arctic_workers.inference.engines.tensorrt_llm.engine import TensorRTEngine, new_outputs, sampling_arguments

GREEDY = Sampling(max_tokens=4, temperature=0.0)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the LLM API, in the place of the published one, without what models are made of."""
    package = types.ModuleType("tensorrt_llm")
    package.__path__ = [str(STAND_IN / "parts")]
    monkeypatch.setitem(sys.modules, "tensorrt_llm", package)
    llm = importlib.import_module("tensorrt_llm.llmapi.llm")
    vars(package).update(LLM=llm.LLM, SamplingParams=llm.SamplingParams, __version__="1.2.1")
    yield llm
    for name in [name for name in sys.modules if name.startswith("tensorrt_llm.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_plain_model(tmp_path_factory.mktemp("models") / "tiny")
    spec = {
        "model": {"uri": "file:///weights"},
        "engine": {"name": "tensorrt-llm"},
        "quantization": {"weights": "bf16"},
        "parallelism": {"tensor": 2, "pipeline": 2},
    }
    return plan_arguments(ArcticInferenceSpec.model_validate(spec), read_stored(folder), str(folder))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made known, in order."""
    order: list[str] = []
    monkeypatch.setattr(tensorrt_llm, "register", lambda: order.append("register"))
    return order


@pytest.fixture
async def engine(
    api: Any, arguments: dict[str, Any], registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[TensorRTEngine, None]:
    monkeypatch.setattr(engines, "PING", 0.05)
    monkeypatch.setattr(engines, "_STATS_PAUSE", 0.01)
    made = TensorRTEngine(arguments, beat=lambda: None, on_failure=FAILURES.append)
    FAILURES.clear()
    await made.start()
    yield made
    await made.stop()


FAILURES: list[str] = []


async def answer(engine: TensorRTEngine, sampling: Sampling, prompt: tuple[int, ...] = (3, 4)) -> list[Output]:
    return [output async for output in engine.generate(Request(prompt, sampling))]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for is in a task of the engine's
        await asyncio.sleep(0.01)


async def test_tokens_come_one_by_one_and_the_last_says_why(engine: TensorRTEngine) -> None:
    assert await answer(engine, GREEDY) == [Output(8), Output(9), Output(10), Output(11, finish_reason="length")]


async def test_a_stop_token_is_the_last_one(engine: TensorRTEngine) -> None:
    sampling = Sampling(max_tokens=9, temperature=0.0, stop_tokens=frozenset({10, 200}))
    assert await answer(engine, sampling) == [Output(8), Output(9), Output(10, finish_reason="stop")]


async def test_probabilities_are_told_of_the_token_and_of_the_likeliest(engine: TensorRTEngine) -> None:
    first, *_ = await answer(engine, Sampling(max_tokens=2, temperature=0.0, logprobs=2))
    assert first == Output(8, -1.0, ((8, -1.0), (9, -2.0)))
    first, *_ = await answer(engine, Sampling(max_tokens=2, temperature=0.0, logprobs=0))
    assert first == Output(8, -1.0)


async def test_it_is_ready_when_arctic_is_known_and_a_pass_went_through(
    api: Any, arguments: dict[str, Any], registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    iterate, make = api.LLM.iterate, api.LLM.__init__
    monkeypatch.setattr(api.LLM, "__init__", lambda llm, **given: (registered.append("LLM"), make(llm, **given))[1])
    monkeypatch.setattr(api.LLM, "iterate", lambda llm: (registered.append("pass"), iterate(llm))[1])
    engine = TensorRTEngine(arguments, beat=lambda: None, on_failure=FAILURES.append)
    assert (engine.ready, engine.stats().loaded, engine.max_length) == (False, 0.0, 256)
    await engine.start()
    assert registered[:3] == ["register", "LLM", "pass"]
    assert (engine.ready, engine.stats().loaded) == (True, 1.0)
    await engine.stop()
    assert not engine.ready


async def test_arguments_of_another_release_are_refused_before_anything_loads(
    api: Any, arguments: dict[str, Any], registered: list[str]
) -> None:
    engine = TensorRTEngine(arguments | {"of_another_release": 1}, beat=lambda: None, on_failure=FAILURES.append)
    with pytest.raises(Refused, match="of_another_release"):
        await engine.start()


async def test_a_model_that_does_not_load_is_an_error(
    api: Any, arguments: dict[str, Any], registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(api.LLM, "__init__", fail)
    with pytest.raises(EngineError, match="could not load the model: CUDA out of memory"):
        await TensorRTEngine(arguments, beat=lambda: None, on_failure=FAILURES.append).start()


async def test_a_request_that_is_closed_is_aborted_and_draining_waits_for_the_others(engine: TensorRTEngine) -> None:
    made = Request((1,), Sampling(max_tokens=200, temperature=0.0))
    async with aclosing(engine.generate(made)) as outputs:
        await anext(outputs)
        await until(lambda: engine.stats().running == 1)
        assert engine.stats() == Stats(1, 0, 0.01, loaded=1.0)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0.05)
        assert not draining.done()
    await draining
    assert engine._llm.active == set()
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_an_answer_that_is_made_and_not_read_waits_for_nothing_and_passes_go_on(engine: TensorRTEngine) -> None:
    """The heart would stop beating, and the pod end by it, while one client reads slowly."""
    async with aclosing(engine.generate(Request((1,), GREEDY))) as outputs:
        await anext(outputs)
        await until(lambda: not engine._open.unmade)
        engine._told = {"numActiveRequests": 0}
        assert (engine.stats().running, engine.stats().waiting) == (1, 0)
        passes = engine._llm._iterations
        async with asyncio.timeout(5):
            await until(lambda: engine._llm._iterations > passes)
        assert len([output async for output in outputs]) == 3
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_a_request_that_fails_ends_alone(engine: TensorRTEngine, api: Any) -> None:
    with pytest.raises(EngineError, match="TensorRT-LLM failed"):
        await answer(engine, GREEDY, prompt=())  # which the API refuses
    assert len(await answer(engine, GREEDY)) == 4
    await asyncio.sleep(0.2)
    assert FAILURES == []


async def test_ranks_that_are_gone_are_noticed_while_nobody_asks(engine: TensorRTEngine) -> None:
    engine._llm.shutdown()
    await until(lambda: bool(FAILURES))
    assert not engine.ready
    assert FAILURES == ["TensorRT-LLM failed: LLM is shutting down"]
    with pytest.raises(EngineError, match="not ready"):
        await answer(engine, GREEDY)


async def test_a_pass_that_hangs_is_noticed(engine: TensorRTEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SILENCE", 0.05)
    monkeypatch.setattr(sys.modules["tensorrt_llm.llmapi.llm"], "STEP", 60)
    await until(lambda: bool(FAILURES))
    assert "did not come back" in FAILURES[0]


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        (Sampling(max_tokens=7, temperature=0.0, seed=3), {"top_k": 1}),
        (Sampling(max_tokens=7, temperature=1e-320, top_p=0.5), {"top_k": 1}),
        (Sampling(max_tokens=7), {"temperature": 1.0, "top_p": 1.0, "top_k": None}),
        (Sampling(max_tokens=7, temperature=0.7, top_p=0.5, top_k=9), {"temperature": 0.7, "top_p": 0.5, "top_k": 9}),
    ],
)
def test_sampling_is_told_under_the_engines_own_names(api: Any, sampling: Sampling, told: dict[str, Any]) -> None:
    common = {"max_tokens": 7, "end_id": -1, "stop_token_ids": None, "logprobs": None, "detokenize": False}
    arguments = sampling_arguments(sampling)
    assert arguments == common | {"include_stop_str_in_output": True} | told
    api.SamplingParams(**arguments)


def test_what_a_release_without_seeds_a_request_can_not_do_is_said(arguments: dict[str, Any]) -> None:
    engine = TensorRTEngine(arguments, beat=lambda: None, on_failure=FAILURES.append)
    assert {"seed", "prompt_logprobs", "frequency_penalty"} <= engine.cannot


def completion(tokens: list[int], **fields: Any) -> Any:
    return types.SimpleNamespace(
        token_ids=tokens, **{"finish_reason": None, "stop_reason": None, "logprobs": []} | fields
    )


def test_a_stop_token_that_was_cut_off_is_put_back() -> None:
    told = completion([5, 6], finish_reason="stop", stop_reason=7)
    assert list(new_outputs(told, 1, GREEDY)) == [Output(6), Output(7, finish_reason="stop")]


def test_an_answer_that_ends_without_a_new_token_is_an_error() -> None:
    told = completion([5], finish_reason="length")
    with pytest.raises(EngineError, match="without a token"):
        new_outputs(told, 1, GREEDY)


@pytest.mark.parametrize("reason", ["cancelled", "timeout"])
def test_an_answer_that_others_ended_is_an_error(reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        new_outputs(completion([5], finish_reason=reason), 0, GREEDY)


def test_a_token_whose_probability_is_not_told_is_an_error() -> None:
    with pytest.raises(EngineError, match="probability of token 5"):
        new_outputs(completion([5], logprobs=[{6: object()}]), 0, Sampling(max_tokens=1, logprobs=1))
