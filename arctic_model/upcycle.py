"""Where the tensors of a dense model go when hybrid layers are put between its layers. Pure, no torch.

Of every `moe_layer_frequency` layers the last is hybrid and new; the others are the dense model's, in their order.
"""

from __future__ import annotations

import re

from arctic_model.config import ArcticConfig

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def grown_config(dense: ArcticConfig, *, experts: int, every: int, chosen: int = 2) -> ArcticConfig:
    """Return the configuration with a hybrid layer at every `every`-th place, and the dense layers around them.

    `chosen` are the experts of a token, at most all. Dense layers that are left over come last. Raises ValueError for
    a model that has experts, and where there would be no hybrid layer.
    """
    if dense.expert_layers:
        raise ValueError(
            f"{dense.expert_layers} of the model's layers have experts: only a model without any can grow them"
        )
    layers = dense.num_hidden_layers
    if not 2 <= every <= layers + 1:
        raise ValueError(
            f"a hybrid layer at every {every}. place, and the model has {layers} layers: write a number from 2 to "
            f"{layers + 1}"
        )
    return dense.replace(
        num_hidden_layers=layers + layers // (every - 1),
        moe_layer_frequency=every,
        num_local_experts=experts,
        num_experts_per_tok=min(chosen, experts),
    )


def dense_name(config: ArcticConfig, hf_name: str) -> str | None:
    """The tensor of the dense model that one of the grown model is; None for one of a hybrid layer."""
    match = _LAYER.fullmatch(hf_name)
    if match is None:
        return hf_name
    layer = int(match[1])
    if config.has_experts(layer):
        return None
    return f"model.layers.{layer - layer // config.moe_layer_frequency}.{match[2]}"
