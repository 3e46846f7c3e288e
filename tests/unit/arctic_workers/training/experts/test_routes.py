import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_workers.training.experts.routes import Routes, experts_of_chunk, inverse, order_by_expert

CASES = st.tuples(
    st.integers(0, 12), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99)
)


@given(CASES)
@settings(max_examples=60)
def test_rows_travel_by_chunk_then_rank_then_expert_then_token(case: tuple[int, ...]) -> None:
    tokens, chosen, ranks, held, chunks, seed = case
    experts = ranks * held
    choices_SK = torch.randint(experts, (tokens, chosen), generator=torch.Generator().manual_seed(seed))
    routes = Routes.of(choices_SK, experts, ranks, chunks)
    assert sorted(routes.order_R.tolist()) == list(range(tokens * chosen))
    assert routes.counts_CWE.shape == (chunks, ranks, held)
    rows = iter(routes.order_R.tolist())
    for of_chunk in routes.counts_CWE.tolist():
        for rank, of_rank in enumerate(of_chunk):
            for expert, count in enumerate(of_rank):
                there = [next(rows) for _ in range(count)]
                assert {int(choices_SK.flatten()[row]) for row in there} <= {rank * held + expert}
                assert there == sorted(there)


@given(CASES)
@settings(max_examples=40)
def test_choices_that_are_not_kept_come_last_and_are_counted_nowhere(case: tuple[int, ...]) -> None:
    tokens, chosen, ranks, held, chunks, seed = case
    draw = torch.Generator().manual_seed(seed)
    choices_SK = torch.randint(ranks * held, (tokens, chosen), generator=draw)
    kept_SK = torch.rand(tokens, chosen, generator=draw) < 0.5
    routes = Routes.of(choices_SK, ranks * held, ranks, chunks, kept_SK)
    stay = int(routes.counts_CWE.sum())
    assert kept_SK.flatten()[routes.order_R].tolist() == [True] * stay + [False] * (kept_SK.numel() - stay)
    # Among themselves they travel as they do without the others.
    whole = Routes.of(choices_SK, ranks * held, ranks, chunks).order_R
    assert routes.order_R[:stay].tolist() == [row for row in whole.tolist() if kept_SK.flatten()[row]]


@given(CASES)
@settings(max_examples=40)
def test_an_expert_has_all_its_rows_in_one_chunk_where_there_are_enough_experts(case: tuple[int, ...]) -> None:
    tokens, chosen, ranks, held, chunks, seed = case
    choices_SK = torch.randint(ranks * held, (tokens, chosen), generator=torch.Generator().manual_seed(seed))
    counts_CWE = Routes.of(choices_SK, ranks * held, ranks, chunks).counts_CWE
    if held >= chunks:
        assert ((counts_CWE.sum(1) > 0).sum(0) <= 1).all()


@given(CASES)
@settings(max_examples=40)
def test_the_experts_of_a_chunk_are_those_that_have_rows_in_it(case: tuple[int, ...]) -> None:
    tokens, chosen, ranks, held, chunks, seed = case
    choices_SK = torch.randint(ranks * held, (tokens, chosen), generator=torch.Generator().manual_seed(seed))
    counts_CWE = Routes.of(choices_SK, ranks * held, ranks, chunks).counts_CWE
    for chunk, counts_WE in enumerate(counts_CWE):
        assert counts_WE[:, experts_of_chunk(chunk, chunks, held)].sum() == counts_WE.sum()
    if held >= chunks:
        parts = [range(held)[experts_of_chunk(chunk, chunks, held)] for chunk in range(chunks)]
        assert [expert for part in parts for expert in part] == list(range(held))


def test_arriving_rows_are_brought_together_by_expert_and_back() -> None:
    counts_WE = torch.tensor([[2, 0, 1], [1, 1, 0]])
    order = order_by_expert(counts_WE, 5)
    assert order.tolist() == [0, 1, 3, 4, 2]
    assert order[inverse(order)].tolist() == [0, 1, 2, 3, 4]
