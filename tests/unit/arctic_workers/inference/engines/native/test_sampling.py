"""How tokens are chosen."""

import math

import pytest
import torch

from arctic_workers.inference.engines.native.sampling import draw_tokens, uniform
from arctic_workers.inference.engines.native.step import Draw

LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.5]).log_softmax(-1)


def how(**changes: object) -> Draw:
    values: dict[str, object] = {"seed": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "logprobs": None}
    return Draw(**(values | changes))  # type: ignore[arg-type]


def frequencies(draw: Draw, count: int = 1500) -> list[float]:
    tokens = [one.token for one in draw_tokens(LOGITS.expand(count, -1), [(draw, at) for at in range(count)])]
    return [tokens.count(token) / count for token in range(len(LOGITS))]


def test_tokens_come_as_often_as_their_probability_says() -> None:
    for temperature in (1.0, 0.5):
        expected = torch.softmax(LOGITS / temperature, -1).tolist()
        for got, wanted in zip(frequencies(how(temperature=temperature)), expected, strict=True):
            assert math.isclose(got, wanted, abs_tol=0.05)


def test_only_candidates_are_chosen() -> None:
    assert [f > 0 for f in frequencies(how(top_k=2))] == [False, True, False, True, False]
    likeliest = float(LOGITS[1].exp())
    assert [f > 0 for f in frequencies(how(top_p=likeliest - 0.01))] == [False, True, False, False, False]
    assert [f > 0 for f in frequencies(how(top_p=likeliest + 0.01))] == [False, True, False, True, False]


def test_greedy_takes_the_likeliest_and_reports_the_models_own_logprobs() -> None:
    [one] = draw_tokens(LOGITS[None], [(how(temperature=0.0, logprobs=2), 7)])
    assert one.token == 1
    assert [token for token, _ in one.top] == [1, 3]
    assert math.isclose(one.logprob or 0, float(LOGITS[1]), rel_tol=1e-5)
    [hot] = draw_tokens(LOGITS[None], [(how(temperature=2.0, logprobs=0), 7)])
    assert math.isclose(hot.logprob or 0, float(LOGITS[hot.token]), rel_tol=1e-5)
    assert hot.top == ()


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300, 1e-7])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_temperature_of_almost_nothing_is_greedy(temperature: float, top_p: float) -> None:
    """Dividing by it would overflow, and the likeliest token would be lost among NaNs."""
    [one] = draw_tokens(LOGITS[None], [(how(temperature=temperature, top_p=top_p), 7)])
    assert one.token == 1


def test_chance_is_a_function_of_seed_and_position() -> None:
    assert uniform(3, 5) == uniform(3, 5)
    assert len({uniform(seed, position) for seed in (-(2**63), 0, 1) for position in range(50)}) == 150
    assert all(0 <= uniform(0, position) < 1 for position in range(50))
