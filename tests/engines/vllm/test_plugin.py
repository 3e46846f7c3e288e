"""What the plugin registers, which configurations it takes, and the experts that vLLM has no kernel for.

vLLM and what it brings warn as they are imported: that is inside the tests, where warnings are none of ours.
"""

from importlib.metadata import entry_points
from typing import Any

import pytest
import torch

from arctic_model.config import ArcticConfig as Architecture
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.moe import MoE

pytestmark = pytest.mark.filterwarnings("ignore")
TINY = Architecture.preset("arctic-tiny")


def config_of(**changes: Any) -> Any:
    from arctic_workers.inference.engines.vllm.config import ArcticConfig

    return ArcticConfig.from_dict({**TINY.to_dict(), **changes})


def test_vllm_finds_the_plugin_and_the_plugin_registers_the_model() -> None:
    from transformers import AutoConfig  # type: ignore[import-not-found]  # comes with vLLM alone
    from vllm import ModelRegistry

    [plugin] = [point for point in entry_points(group="vllm.general_plugins") if point.name == "arctic"]
    register = plugin.load()
    register()
    register()
    assert "ArcticForCausalLM" in ModelRegistry.get_supported_archs()
    assert type(AutoConfig.for_model("arctic")) is type(config_of())


@pytest.mark.parametrize(
    "rope_scaling", [None, {"type": "linear", "factor": 3.0}, {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0}]
)
def test_a_configuration_is_the_same_to_vllm_as_to_us(rope_scaling: dict[str, Any] | None) -> None:
    changes = {"rope_scaling": rope_scaling, "rope_theta": 5e4, "moe_layer_frequency": 2, "sliding_window": 64}
    ours, theirs = TINY.replace(**changes), config_of(**changes).architecture()
    for field in Architecture.model_fields.keys() - {"rope_scaling", "architectures", "torch_dtype"}:
        if field not in ("router_aux_loss_coef", "initializer_range"):  # of training alone
            assert getattr(theirs, field) == getattr(ours, field), field
    if theirs.rope is not None and ours.rope is not None:
        # transformers writes down the length that `yarn` starts from, where the file leaves it out.
        assert theirs.rope.model_dump(exclude={"original_max_position_embeddings"}) == ours.rope.model_dump(
            exclude={"original_max_position_embeddings"}
        )
    else:
        assert theirs.rope is ours.rope


def test_a_quantised_checkpoint_is_vllms_to_take() -> None:
    config_of(quantization_config={"quant_method": "compressed-tensors"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "write `linear` or `yarn`"),
        ({"attention_bias": True}, "an Arctic has no biases"),
        ({"num_experts_per_tok": 9}, "a token cannot have more experts than there are"),
    ],
)
def test_what_would_be_another_model_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_of(**changes)


def test_experts_in_plain_torch_are_ours_wherever_they_are_held() -> None:
    from arctic_workers.inference.engines.vllm.experts import expert_sums

    model = ArcticModel(TINY)
    init_weights(model, seed=3)
    moe = model.layers[0].block_sparse_moe
    assert isinstance(moe, MoE)
    x_SD = torch.randn(37, TINY.hidden_size, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        routing, (expected_SD, _) = moe.router(x_SD), moe(x_SD)
        w13_EGD = torch.cat((moe.experts.w1, moe.experts.w3), dim=1)
        place_E = torch.full((TINY.num_local_experts,), -1)
        sums = []
        for held in (range(3), range(3, TINY.num_local_experts)):  # of two ranks
            place_E.fill_(-1)[held.start : held.stop] = torch.arange(len(held))
            stacks = (weights[held.start : held.stop] for weights in (w13_EGD, moe.experts.w2))
            sums.append(expert_sums(x_SD, *stacks, routing.weights_SK, place_E[routing.experts_SK]))
    torch.testing.assert_close(sums[0] + sums[1], expected_SD, rtol=1e-5, atol=1e-6)
