"""How tokens are chosen."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from arctic_workers.inference.engine import Sampling
from arctic_workers.inference.engines.native import sampling
from arctic_workers.inference.engines.native.sampling import draw_tokens, tell_tokens, uniform
from arctic_workers.inference.engines.native.step import Adjustment, Draw, Drawn

LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.5]).log_softmax(-1)


def how(**changes: object) -> Draw:
    values: dict[str, object] = {"seed": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "logprobs": None}
    return Draw(**(values | changes))  # type: ignore[arg-type]


def drawn_from(logits_SV: torch.Tensor, draws: list[tuple[Draw, int]]) -> list[Drawn]:
    return draw_tokens(logits_SV, logits_SV.argmax(-1).tolist(), draws)


def frequencies(draw: Draw, count: int = 1500) -> list[float]:
    tokens = [one.token for one in drawn_from(LOGITS.expand(count, -1), [(draw, at) for at in range(count)])]
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
    [one] = drawn_from(LOGITS[None], [(how(temperature=0.0, logprobs=2), 7)])
    assert one.token == 1
    assert [token for token, _ in one.top] == [1, 3]
    assert math.isclose(one.logprob or 0, float(LOGITS[1]), rel_tol=1e-5)
    [hot] = drawn_from(LOGITS[None], [(how(temperature=2.0, logprobs=0), 7)])
    assert math.isclose(hot.logprob or 0, float(LOGITS[hot.token]), rel_tol=1e-5)
    assert hot.top == ()


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300, 1e-7])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_temperature_of_almost_nothing_is_greedy(temperature: float, top_p: float) -> None:
    """Dividing by it would overflow, and the likeliest token would be lost among NaNs."""
    [one] = drawn_from(LOGITS[None], [(how(temperature=temperature, top_p=top_p), 7)])
    assert one.token == 1


def adjusted(**changes: object) -> Draw:
    none = {
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0,
        "bias": (), "banned": (), "banned_before": 0, "counts": (),
    }  # fmt: skip
    return how(temperature=0.0, logprobs=0, adjustment=Adjustment(**(none | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "token"),
    [
        ({}, 1),
        ({"bias": ((2, 3.5), (4, 1.0))}, 2),
        ({"bias": ((1, -1.5),)}, 3),
        ({"banned": (1, 3), "banned_before": 8}, 4),
        ({"banned": (1, 3), "banned_before": 7}, 1),
        ({"frequency_penalty": 0.4, "counts": ((1, 2), (0, 1))}, 1),
        ({"frequency_penalty": 0.4, "counts": ((1, 3),)}, 3),
        ({"presence_penalty": 1.1, "counts": ((1, 1),)}, 3),
        ({"presence_penalty": 1.1, "counts": ((1, 0),)}, 1),
        ({"presence_penalty": -1.1, "counts": ((3, 1),)}, 3),
        ({"repetition_penalty": 3.0, "counts": ((1, 0),)}, 3),
        ({"repetition_penalty": 0.1, "counts": ((4, 0),)}, 4),
    ],
)
def test_what_adjusts_logits_changes_the_choice_and_not_what_is_told(changes: dict[str, object], token: int) -> None:
    raw_V = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.5])
    [one] = drawn_from(raw_V[None], [(adjusted(**changes), 7)])
    assert one.token == token
    assert one.logprob == pytest.approx(float(raw_V.log_softmax(-1)[token]))


def test_a_penalty_takes_from_negative_logits_too() -> None:
    raw_V = torch.tensor([-1.0, -1.5, -9.0])
    [one] = drawn_from(raw_V[None], [(adjusted(repetition_penalty=2.0, counts=((0, 0),)), 7)])
    assert one.token == 1


def test_candidates_are_at_least_so_likely_as_a_share_of_the_likeliest() -> None:
    share = float((LOGITS[3] - LOGITS[1]).exp())
    assert [f > 0 for f in frequencies(how(min_p=share - 0.01))] == [False, True, False, True, False]
    assert [f > 0 for f in frequencies(how(min_p=share + 0.01))] == [False, True, False, False, False]
    assert [f > 0 for f in frequencies(how(min_p=share - 0.01, top_k=1))] == [False, True, False, False, False]


@pytest.mark.parametrize("cut", [{"min_p": 0.1}, {"top_p": 0.5}, {"top_k": 2}, {}])
@pytest.mark.parametrize("logit", [0.0, -3e38, 3e38, math.inf, -math.inf, math.nan])
def test_a_token_is_drawn_where_none_is_left_or_all_are_beyond_numbers(logit: float, cut: dict[str, float]) -> None:
    """An error here would end the whole group."""
    for least, bias, temperature in product((0, 1), (0.0, -100.0, 3e38), (2e-6, 1.0)):
        asked = Sampling(
            4,
            temperature=temperature,
            seed=1,
            stop_tokens=frozenset(range(4)),
            min_tokens=least,
            logit_bias=tuple((token, bias) for token in range(4)),
            **cut,  # type: ignore[arg-type]
        )
        [one] = draw_tokens(torch.full((1, 4), logit), [0], [(Draw.of(asked, 3), 3)])
        assert one.token in range(4)


def test_what_became_too_large_for_a_number_is_still_the_likeliest() -> None:
    adjustment = adjusted(bias=((2, 3e38),)).adjustment
    [one] = drawn_from(torch.tensor([[0.0, 1.0, 3e38]]), [(how(min_p=0.1, adjustment=adjustment), 7)])
    assert one.token == 2


def test_a_banned_token_is_never_drawn_while_another_is_left() -> None:
    for cut in ({"min_p": 0.1}, {"top_p": 0.9}, {"top_k": 3}, {}):
        draw = how(temperature=2.0, adjustment=adjusted(banned=(0, 1, 3, 4), banned_before=9999).adjustment, **cut)
        assert frequencies(draw, 50) == [0, 0, 1, 0, 0]


def test_a_row_is_drawn_the_same_alone_as_in_company() -> None:
    torch.manual_seed(0)
    logits_SV = torch.randn(24, 1000) * 3
    logits_SV[5] = logits_SV[6].round()  # with equals
    ways = [how(temperature=0.0), how(temperature=0.0, logprobs=3), how(top_p=0.9, logprobs=1), how(min_p=0.1),
            adjusted(bias=((3, 5.0),)), how(logprobs=0)]  # fmt: skip
    draws = [(ways[row % len(ways)], row) for row in range(24)]
    together = drawn_from(logits_SV, draws)
    assert together == [drawn_from(logits_SV[row : row + 1], [draws[row]])[0] for row in range(24)]
    told = tell_tokens(logits_SV, range(24), [*range(24)], [2] * 24)
    assert told == [tell_tokens(logits_SV, [row], [row], [2])[0] for row in range(24)]


@pytest.mark.parametrize("together", [1, 1 << 21])
def test_a_gpus_likeliest_tokens_and_many_rows_at_once_are_drawn_the_same(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    logits_SV = torch.randn(40, 301) * 3
    changes = {"bias": ((3, 5.0),), "banned": (7, 8), "banned_before": 99, "counts": ((1, 2), (9, 1))}
    penalised = adjusted(**changes, frequency_penalty=0.7, presence_penalty=0.3, repetition_penalty=1.3)
    ways = [how(), how(top_p=0.7, logprobs=2), how(top_k=1), how(top_k=9, min_p=0.2), how(min_p=0.6, seed=5), penalised,
            replace(penalised, temperature=0.8), replace(penalised, temperature=0.8, top_p=0.9)]  # fmt: skip
    draws = [(ways[row % len(ways)], row) for row in range(40)]
    expected = drawn_from(logits_SV, draws)
    monkeypatch.setitem(sampling.AT_ONCE, "cpu", together)
    assert draw_tokens(logits_SV, logits_SV.argmax(-1), draws) == expected


def test_sums_in_whole_numbers_are_as_near_as_any_and_a_rows_own() -> None:
    torch.manual_seed(2)
    shares_RC = (torch.randn(5, 3000, dtype=torch.float64) * 4).softmax(-1)
    sums_RC = sampling.whole_sums(shares_RC)
    torch.testing.assert_close(sums_RC, shares_RC.cumsum(-1), rtol=0, atol=1e-13)
    assert torch.equal(sampling.whole_sums(shares_RC[2:3]), sums_RC[2:3])
    assert bool((sums_RC.diff(dim=-1) >= 0).all())


def test_chance_is_a_function_of_seed_and_position() -> None:
    assert uniform(3, 5) == uniform(3, 5)
    assert len({uniform(seed, position) for seed in (-(2**63), 0, 1) for position in range(50)}) == 150
    assert all(0 <= uniform(0, position) < 1 for position in range(50))
