"""Arctic for TensorRT-LLM's PyTorch backend, out of its own modules.

```
h = x + attention(input_layernorm(x))
y = h + residual_mlp(residual_layernorm(h)) + experts(post_attention_layernorm(x))    # the experts read x
```

Tensor parallelism cuts attention, MLPs, embedding and output matrix; the experts are cut or shared out within the same
ranks (`moe_tensor_parallel_size`, `moe_expert_parallel_size`). Residual MLP and experts both leave partial sums, which
are added before one all-reduce: two a layer, attention's and this one. Pipeline ranks hand over hidden states alone.
Quantisation is the checkpoint's (`QuantConfig`) and reaches `Linear` and the experts through `model_config`; the gate
has none.

Source (signatures and contracts alone): `tensorrt_llm/_torch/models/modeling_utils.py`, `modeling_mixtral.py`,
`modeling_qwen3_moe.py`, and under `_torch/modules/`: `attention.py`, `gated_mlp.py`, `linear.py`, `embedding.py`,
`decoder_layer.py`, `rms_norm.py`, `fused_moe/create_moe.py`; `_torch/distributed/ops.py`. The arithmetic and the names
are tested on stand-ins of these classes in plain torch: that shows this file's wiring, and nothing of TensorRT-LLM's
kernels, its loading, or its speed.
"""

from typing import Any

import torch
from tensorrt_llm._torch.attention_backend import AttentionMetadata
from tensorrt_llm._torch.attention_backend.interface import PositionalEmbeddingParams, RopeParams
from tensorrt_llm._torch.distributed import AllReduce, AllReduceParams
from tensorrt_llm._torch.model_config import ModelConfig
from tensorrt_llm._torch.models.modeling_utils import DecoderModel, DecoderModelForCausalLM, register_auto_model
from tensorrt_llm._torch.modules.attention import Attention
from tensorrt_llm._torch.modules.decoder_layer import DecoderLayer
from tensorrt_llm._torch.modules.embedding import Embedding
from tensorrt_llm._torch.modules.fused_moe import RenormalizeMoeRoutingMethod, create_moe
from tensorrt_llm._torch.modules.gated_mlp import GatedMLP
from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode
from tensorrt_llm._torch.modules.rms_norm import RMSNorm
from tensorrt_llm._torch.utils import AuxStreamType
from tensorrt_llm.functional import PositionEmbeddingType
from torch import Tensor, nn

from arctic_workers.inference.engines.tensorrt_llm.checkpoint import ARCHITECTURE
from arctic_workers.inference.engines.tensorrt_llm.config import ArcticHuggingFaceConfig


class ArcticAttention(Attention):  # type: ignore[misc]
    """Grouped-query attention with rotary positions in the rotate-half form and no bias."""

    def __init__(self, model_config: ModelConfig, layer: int) -> None:
        config = model_config.pretrained_config
        positions = PositionalEmbeddingParams(
            type=PositionEmbeddingType.rope_gpt_neox, rope=RopeParams.from_config(config)
        )
        super().__init__(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            bias=False,
            pos_embd_params=positions,
            layer_idx=layer,
            dtype=config.torch_dtype,
            config=model_config,
        )


class ArcticExperts(nn.Module):
    """Gate and experts; returns this rank's share of the sum."""

    def __init__(self, model_config: ModelConfig, layer: int, stream: Any) -> None:
        super().__init__()
        config = model_config.pretrained_config
        self.gate = Linear(
            config.hidden_size, config.num_local_experts, bias=False, dtype=config.torch_dtype, quant_config=None
        )
        self.experts = create_moe(
            routing_method=RenormalizeMoeRoutingMethod(top_k=config.num_experts_per_tok),
            num_experts=config.num_local_experts,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            dtype=config.torch_dtype,
            reduce_results=False,
            model_config=model_config,
            aux_stream_dict={AuxStreamType.MoeChunkingOverlap: stream},
            layer_idx=layer,
        )

    def forward(self, x_SD: Tensor, attn_metadata: AttentionMetadata) -> Tensor:
        """Route and run; the sum over the tensor ranks is the layer's."""
        out: Tensor = self.experts(
            x_SD, self.gate(x_SD), all_rank_num_tokens=attn_metadata.all_rank_num_tokens, use_dp_padding=False
        )
        return out


class ArcticDenseMLP(nn.Module):
    """The MLP of a layer without experts, under the name that checkpoints give it."""

    def __init__(self, model_config: ModelConfig, layer: int) -> None:
        super().__init__()
        config = model_config.pretrained_config
        self.mlp = gated_mlp(model_config, config.intermediate_size, layer)

    def forward(self, x_SD: Tensor) -> Tensor:
        """Return the whole sum, on every tensor rank."""
        out: Tensor = self.mlp(x_SD)
        return out


def gated_mlp(model_config: ModelConfig, inner: int, layer: int) -> GatedMLP:
    """`w2(silu(w1 x) * w3 x)`, cut over the tensor ranks."""
    config = model_config.pretrained_config
    return GatedMLP(
        hidden_size=config.hidden_size,
        intermediate_size=inner,
        bias=False,
        dtype=config.torch_dtype,
        config=model_config,
        layer_idx=layer,
    )


class ArcticDecoderLayer(DecoderLayer):  # type: ignore[misc]
    """One layer: attention beside experts and residual MLP, or attention and then one MLP."""

    def __init__(self, model_config: ModelConfig, layer: int, stream: Any) -> None:
        super().__init__()
        config = model_config.pretrained_config
        self.window = config.sliding_window
        self.has_experts = (layer + 1) % config.moe_layer_frequency == 0
        self.self_attn = ArcticAttention(model_config, layer)
        self.input_layernorm = rms_norm(config)
        self.post_attention_layernorm = rms_norm(config)
        if self.has_experts:
            self.residual_layernorm = rms_norm(config)
            self.residual_mlp = gated_mlp(model_config, config.hidden_size, layer)
            self.block_sparse_moe = ArcticExperts(model_config, layer, stream)
            self.all_reduce = AllReduce(mapping=model_config.mapping, strategy=model_config.allreduce_strategy)
        else:
            self.block_sparse_moe = ArcticDenseMLP(model_config, layer)  # type: ignore[assignment]

    def forward(
        self,
        position_ids: Tensor,
        hidden_states: Tensor,
        attn_metadata: AttentionMetadata,
        residual: object = ...,  # noqa: ARG002  the pipeline's wrappers hand it on; this model keeps none apart
        **kwargs: Any,
    ) -> Tensor:
        """Return the layer's output [S, D]."""
        x_SD = hidden_states
        attended_SD = self.self_attn(
            position_ids=position_ids,
            hidden_states=self.input_layernorm(x_SD),
            attn_metadata=attn_metadata,
            attention_window_size=self.window,
            **kwargs,
        )
        if not self.has_experts:
            normed_SD, h_SD = self.post_attention_layernorm(attended_SD, x_SD)
            dense_SD: Tensor = h_SD + self.block_sparse_moe(normed_SD)
            return dense_SD
        # Before the norm that adds: with flashinfer it writes the sum over x, and the experts read x.
        experts_SD = self.block_sparse_moe(self.post_attention_layernorm(x_SD), attn_metadata)
        normed_SD, h_SD = self.residual_layernorm(attended_SD, x_SD)
        partial_SD = self.residual_mlp(normed_SD, final_all_reduce_params=AllReduceParams(enable_allreduce=False))
        out_SD: Tensor = h_SD + self.all_reduce(partial_SD + experts_SD)
        return out_SD


def rms_norm(config: ArcticHuggingFaceConfig) -> RMSNorm:
    """A norm over the hidden states."""
    return RMSNorm(hidden_size=config.hidden_size, eps=config.rms_norm_eps, dtype=config.torch_dtype)


class ArcticModel(DecoderModel):  # type: ignore[misc]
    """What checkpoints call `model`: embedding, layers, final norm."""

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        config = model_config.pretrained_config
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            dtype=config.torch_dtype,
            mapping=model_config.mapping,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            gather_output=True,
        )
        self.layers = nn.ModuleList(
            ArcticDecoderLayer(model_config, layer, stream) for layer in range(config.num_hidden_layers)
        )
        self.norm = rms_norm(config)

    def forward(
        self,
        attn_metadata: AttentionMetadata,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,  # noqa: ARG002  for speculation and adapters, which are not offered
    ) -> Tensor:
        """Return the normalised hidden states [S, D] of one step's tokens, from their ids or their embeddings."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        x_SD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x_SD = layer(position_ids=position_ids, hidden_states=x_SD, attn_metadata=attn_metadata)
        out_SD: Tensor = self.norm(x_SD)
        return out_SD


@register_auto_model(ARCHITECTURE)
class ArcticForCausalLM(DecoderModelForCausalLM[ArcticModel, ArcticHuggingFaceConfig]):  # type: ignore[misc]
    """The model that TensorRT-LLM builds for a folder whose `architectures` names Arctic."""

    def __init__(self, model_config: ModelConfig) -> None:
        config = model_config.pretrained_config
        super().__init__(
            ArcticModel(model_config), config=model_config, hidden_size=config.hidden_size, vocab_size=config.vocab_size
        )

    def load_weights(self, weights: Any, weight_mapper: Any, *args: Any, **kwargs: Any) -> None:
        """Load a published checkpoint's tensors. TensorRT-LLM looks for the parameter `weight_mapper` by its name."""
        super().load_weights(weight_mapper.preprocess_weights(weights), weight_mapper, *args, **kwargs)
