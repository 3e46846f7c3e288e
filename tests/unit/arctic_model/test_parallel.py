from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.names import layer_shapes
from arctic_model.parallel import WHOLE, TensorSlice, plan_inference, plan_training, split_balanced

ARCTIC = ArcticConfig()
STEP = {"micro_batch_size": 1, "sequence_length": 4096}


def test_the_published_training_fits():
    plan = plan_training(
        ARCTIC, nodes=128, processes_per_node=8, expert_parallel=128, tokens_per_step=8 * 2**20, **STEP
    )
    assert (plan.world, plan.data_parallel, plan.gradient_accumulation) == (1024, 1024, 2)
    assert plan.experts(129) == range(1, 2)


degrees = st.integers(1, 12)


@settings(max_examples=300)
@given(degrees, st.integers(1, 4), degrees, degrees, st.integers(1, 20), st.integers(1, 3), st.sampled_from([6, 8, 64]))
def test_a_training_plan_shares_everything_evenly_or_says_what_to_write(
    nodes, processes, expert, sequence, multiple, micro, length
):
    config = ArcticConfig.preset("arctic-tiny")
    arguments = {
        "nodes": nodes,
        "processes_per_node": processes,
        "expert_parallel": expert,
        "sequence_parallel": sequence,
    }
    tokens = multiple * 8
    try:
        plan = plan_training(
            config, **arguments, tokens_per_step=tokens, micro_batch_size=micro, sequence_length=length
        )
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert "; write " in refusal
        return
    assert plan.world == nodes * processes == plan.data_parallel * plan.sequence_parallel
    assert plan.data_parallel * plan.gradient_accumulation * micro * length == tokens
    for group in range(plan.world // expert):
        held = [n for rank in range(group * expert, (group + 1) * expert) for n in plan.experts(rank)]
        assert held == list(range(config.num_local_experts))
    assert config.num_key_value_heads % sequence == length % sequence == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expert_parallel": 128}, r"does not divide the world of 2 x 8 ranks \(16\); write one of 1, 2, 4, 8, 16$"),
        ({"expert_parallel": 3}, r"\(16\) or the model's experts \(128\); write one of 1, 2, 4, 8, 16$"),
        ({"sequence_parallel": 16}, r"heads \(56\) or the model's key-value heads \(8\); write one of 1, 2, 4, 8$"),
        ({"tokens_per_step": 100_000}, "tokensPerStep is 100000, no multiple of 16 .* write 131072$"),
        ({"tokens_per_step": 1}, "write 65536$"),
        ({"sequence_length": 8192}, "sequenceLength is 8192 and the model has 4096 positions"),
        ({"nodes": 0}, "nodes is 0; write at least 1"),
    ],
)  # fmt: skip
def test_a_training_that_does_not_fit_is_refused(changes, sentence):
    fitting = {"nodes": 2, "processes_per_node": 8, "tokens_per_step": 65536, **STEP}
    plan_training(ARCTIC, **fitting)
    with pytest.raises(ValueError, match=sentence):
        plan_training(ARCTIC, **{**fitting, **changes})


def test_a_model_without_experts_has_nothing_to_share():
    dense = ARCTIC.replace(moe_layer_frequency=99)
    with pytest.raises(ValueError, match="the model has no experts; write 1"):
        plan_training(dense, nodes=2, processes_per_node=1, expert_parallel=2, tokens_per_step=8192, **STEP)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.data())
def test_a_split_is_whole_in_order_and_as_even_as_can_be(costs, data):
    parts = data.draw(st.integers(1, len(costs)))
    runs = split_balanced(costs, parts)
    assert [place for run in runs for place in run] == list(range(len(costs)))
    assert len(runs) == parts
    assert all(len(run) for run in runs)

    def sums(cuts):
        return [sum(costs[start:stop]) for start, stop in pairwise((0, *cuts, len(costs)))]

    def unevenness(loads):
        return max(loads), sum(load * load for load in loads)

    every = [unevenness(sums(cuts)) for cuts in combinations(range(1, len(costs)), parts - 1)]
    assert unevenness([sum(costs[place] for place in run) for run in runs]) == min(every)


@given(st.integers(1, 35))
def test_a_pipeline_holds_the_whole_model_once(pipeline):
    plan = plan_inference(ARCTIC, tensor=8, pipeline=pipeline)
    assert plan.pipeline == pipeline
    assert [layer for part in plan.slices for layer in part.layers] == list(range(35))
    assert [part.embed for part in plan.slices] == [True] + [False] * (pipeline - 1)
    assert [part.lm_head for part in plan.slices] == [False] * (pipeline - 1) + [True]


def test_layers_are_split_by_their_bytes():
    # Layers 3 and 7 have experts, so they weigh more than the rest together.
    config = ArcticConfig.preset("arctic-tiny").replace(
        num_hidden_layers=8, moe_layer_frequency=4, num_local_experts=128, vocab_size=10
    )
    assert [part.layers for part in plan_inference(config, pipeline=2).slices] == [range(4), range(4, 8)]
    assert [part.layers for part in plan_inference(config, pipeline=3).slices] == [range(3), range(3, 6), range(6, 8)]


@pytest.mark.parametrize(
    ("config", "degrees", "sentence"),
    [
        (ARCTIC, {"tensor": 16}, r"tensor is 16 and does not divide .*key-value heads \(8\); write one of 1, 2, 4, 8$"),
        (ARCTIC, {"pipeline": 36}, "the model has 35 layers; write at most 35"),
        (ARCTIC, {"tensor": 0}, "tensor is 0; write at least 1"),
        (
            ARCTIC.replace(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536),
            {"tensor": 2},
            r"attention heads \(9\) or the model's key-value heads \(3\); write one of 1, 3$",
        ),
    ],
)
def test_a_group_that_does_not_fit_is_refused(config, degrees, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan_inference(config, **degrees)


def owners(hf_name: str, shape: tuple[int, ...], slices: list[TensorSlice], experts: int) -> Counter[tuple[int, int]]:
    """How many tensor ranks have each number of a matrix."""
    number = re.search(r"experts\.(\d+)", hf_name)
    found = Counter()
    for each in slices:
        if number is None or int(number[1]) in each.experts(experts):
            cut = each.cut(hf_name, shape)
            found.update(product(cut.rows, cut.columns))
    return found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 3]), st.integers(1, 2), st.integers(1, 2), st.integers(1, 7), st.booleans())
def test_tensor_ranks_together_have_every_number_once(ranks, groups, shared, experts, whole):
    experts = max(experts, ranks)
    config = ArcticConfig.preset("arctic-tiny").replace(
        hidden_size=2 * ranks * groups * shared,
        intermediate_size=5 * ranks,
        num_attention_heads=ranks * groups * shared,
        num_key_value_heads=ranks * groups,
        num_local_experts=experts,
        num_experts_per_tok=1,
        moe_layer_frequency=2,
    )
    plan_inference(config, tensor=ranks)
    slices = [TensorSlice(rank, ranks, whole) for rank in range(ranks)]
    for layer in range(2):
        for name, shape in layer_shapes(config, layer).items():
            if len(shape) == 1 or "gate" in name:  # whole on each
                assert all(each.cut(name, shape) == WHOLE.cut(name, shape) for each in slices)
                continue
            assert owners(name, shape, slices, experts) == dict.fromkeys(product(*map(range, shape)), 1)
    counts = [len(each.experts(experts)) for each in slices]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("rank", range(8))
def test_a_tensor_rank_has_the_heads_that_its_keys_are_for(rank):
    mine = TensorSlice(rank, 8)
    shapes = {name.rpartition("self_attn.")[2]: shape for name, shape in layer_shapes(ARCTIC, 1).items()}
    q, k, v, o = (mine.cut(f"self_attn.{each}_proj.weight", shapes[f"{each}_proj.weight"]) for each in "qkvo")
    assert (q.rows, k.rows) == (range(896 * rank, 896 * (rank + 1)), range(128 * rank, 128 * (rank + 1)))
    assert (v, o.columns) == (k, q.rows)
    assert len(mine.experts(128)) == 128
    assert TensorSlice(rank, 8, whole_experts=True).experts(128) == range(16 * rank, 16 * (rank + 1))
