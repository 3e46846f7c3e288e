"""How tensors are found: from the names of a published checkpoint to those that TensorRT-LLM's modules ask for.

Its gated MLP fuses what it finds under `gate_proj` and `up_proj`, its attention what is under `q_proj`, `k_proj` and
`v_proj`, and its experts read `{n}.w1`, `{n}.w3` and `{n}.w2` as they are published. So only the MLPs are renamed, with
whatever hangs on a matrix (`weight`, `weight_scale`, `weight_scale_inv`, `input_scale`).

Source (names and meanings alone): `tensorrt_llm/_torch/models/checkpoints/base_weight_mapper.py`, in a version older
than release 1.2.1 and in one newer; `checkpoints/hf/weight_mapper.py` and `_torch/modules/fused_moe/quantization.py`,
in one version each.
"""

from typing import Any

from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper
from tensorrt_llm._torch.models.modeling_utils import register_mapper

from arctic_workers.inference.engines.tensorrt_llm.checkpoint import ARCHITECTURE, RENAMED


@register_mapper("HF", ARCHITECTURE)
class ArcticWeightMapper(HfWeightMapper):  # type: ignore[misc]
    """Chosen by TensorRT-LLM for a Hugging Face folder whose `architectures` names Arctic."""

    def preprocess_weights(self, weights: Any) -> Any:
        """Rename the MLPs' tensors; the model calls it, as nothing in TensorRT-LLM does."""
        return self.rename_by_params_map(RENAMED, weights)
