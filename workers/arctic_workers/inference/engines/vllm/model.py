"""The Arctic model in vLLM's layers: tensor, pipeline and expert parallel, quantised where vLLM's layers are.

vLLM shipped this model until 0.28.0. The arithmetic is that of `arctic_model.model`. Here queries, keys and values are
one matrix (`qkv_proj`), the two input matrices of an MLP are one (`w13`), and vLLM itself stacks the experts. Names of
tensors end in their shape, by the legend of `arctic_model.layers`.
"""

# No `from __future__ import annotations`: vLLM reads those of `ArcticModel.forward` to find the dynamic dimensions.

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    extract_layer_index,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from arctic_workers.inference.engines.vllm.config import ArcticConfig
from arctic_workers.inference.engines.vllm.experts import routed_experts_class


class MLP(nn.Module):
    """Gated MLP: `w2(silu(w1 x) * w3 x)`; each rank computes with a slice of the inner dimension."""

    def __init__(
        self, hidden: int, inner: int, quant_config: QuantizationConfig | None, *, reduce_results: bool, prefix: str
    ) -> None:
        super().__init__()
        self.w13 = MergedColumnParallelLinear(
            hidden, [inner, inner], bias=False, quant_config=quant_config, prefix=f"{prefix}.w13"
        )
        self.w2 = RowParallelLinear(
            inner,
            hidden,
            bias=False,
            quant_config=quant_config,
            reduce_results=reduce_results,
            prefix=f"{prefix}.w2",
        )
        self.act_fn = SiluAndMul()

    def forward(self, x_SD: Tensor) -> Tensor:
        """Return [S, D]: this rank's part of the sum where results are not reduced."""
        gated_up, _ = self.w13(x_SD)
        y_SD: Tensor = self.w2(self.act_fn(gated_up))[0]
        return y_SD


class SparseMoE(nn.Module):
    """The experts of a layer and the residual MLP beside them, as vLLM has experts and a shared expert.

    The residual MLP is vLLM's shared expert but for its input, which is not that of the experts: so both sums over the
    ranks are one, and on a GPU the MLP runs beside the experts on a stream of its own.
    """

    def __init__(
        self, config: ArcticConfig, residual_mlp: MLP, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__()
        # The gate is never quantised, like ours: a choice of experts is not a rounding error.
        self.gate = GateLinear(config.hidden_size, config.num_local_experts, prefix=f"{prefix}.gate")
        self.experts = FusedMoEFactory(
            shared_experts=residual_mlp,
            num_experts=config.num_local_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            renormalize=True,
            quant_config=quant_config,
            prefix=f"{prefix}.experts",
            ckpt_names=("w1", "w2", "w3"),
            routed_experts_cls=routed_experts_class(config.hidden_size, quant_config),
        )

    def forward(self, x_SD: Tensor, residual_SD: Tensor) -> Tensor:
        """Return [S, D]: the experts of `x_SD` plus the residual MLP of `residual_SD`."""
        logits_SE, _ = self.gate(x_SD)
        y_SD: Tensor = self.experts(x_SD, logits_SE, shared_experts_input=residual_SD)
        return y_SD


class DenseMLP(nn.Module):
    """The MLP of a layer without experts, under the name that checkpoints give it."""

    def __init__(self, config: ArcticConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.mlp = MLP(
            config.hidden_size, config.intermediate_size, quant_config, reduce_results=True, prefix=f"{prefix}.mlp"
        )

    def forward(self, x_SD: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        y_SD: Tensor = self.mlp(x_SD)
        return y_SD


class ArcticAttention(nn.Module):
    """Grouped-query attention with rotary positions; its window, if there is one, comes with the cache's configuration.

    Raises ValueError where the heads can't be shared out among the ranks.
    """

    def __init__(
        self,
        config: ArcticConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // heads
        ranks = get_tensor_model_parallel_world_size()
        if heads % ranks or (groups % ranks and ranks % groups):
            raise ValueError(
                f"{heads} heads and {groups} key-value heads cannot be shared out among {ranks} tensor ranks: ask for "
                "a number that divides both, or for a multiple of the key-value heads that divides the heads"
            )
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            heads,
            groups,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            heads * self.head_dim,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = get_rope(
            self.head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.q_size = self.qkv_proj.num_heads * self.head_dim
        self.kv_size = self.qkv_proj.num_kv_heads * self.head_dim
        self.attn = Attention(
            self.qkv_proj.num_heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.qkv_proj.num_kv_heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions_S: Tensor, x_SD: Tensor) -> Tensor:
        """Return a tensor of the same shape as `x_SD`."""
        qkv, _ = self.qkv_proj(x_SD)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions_S, q, k)
        y_SD: Tensor = self.o_proj(self.attn(q, k, v))[0]
        return y_SD


class ArcticDecoderLayer(nn.Module):
    """One layer; attention and a dense MLP, and experts that read the layer's input from before attention."""

    def __init__(
        self,
        config: ArcticConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.has_experts = config.architecture().has_experts(extract_layer_index(prefix))
        self.self_attn = ArcticAttention(config, cache_config, quant_config, f"{prefix}.self_attn")
        self.input_layernorm = RMSNorm(hidden, eps=eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps=eps)
        self.block_sparse_moe: nn.Module
        if not self.has_experts:
            self.block_sparse_moe = DenseMLP(config, quant_config, f"{prefix}.block_sparse_moe")
            return
        self.residual_layernorm = RMSNorm(hidden, eps=eps)
        self.residual_mlp = MLP(hidden, hidden, quant_config, reduce_results=False, prefix=f"{prefix}.residual_mlp")
        self.block_sparse_moe = SparseMoE(config, self.residual_mlp, quant_config, f"{prefix}.block_sparse_moe")

    def forward(self, positions_S: Tensor, x_SD: Tensor) -> Tensor:
        """Return the layer's output [S, D]; `x_SD` is used up (vLLM's norms add in place)."""
        experts_SD = self.post_attention_layernorm(x_SD) if self.has_experts else None
        attended_SD = self.self_attn(positions_S, self.input_layernorm(x_SD))
        y_SD: Tensor
        if experts_SD is None:
            normed_SD, h_SD = self.post_attention_layernorm(attended_SD, x_SD)
            y_SD = h_SD + self.block_sparse_moe(normed_SD)
        else:
            normed_SD, h_SD = self.residual_layernorm(attended_SD, x_SD)
            y_SD = h_SD + self.block_sparse_moe(experts_SD, normed_SD)
        return y_SD


@support_torch_compile
class ArcticModel(nn.Module):
    """What checkpoints call `model`: embedding, layers by their global index, final norm; a pipeline rank has some."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: ArcticConfig = vllm_config.model_config.hf_config
        self.config = config
        self.quant_config = vllm_config.quant_config
        # Every rank has the embedding and the norm, as in vLLM's own models: they are small beside the layers.
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: ArcticDecoderLayer(config, vllm_config.cache_config, vllm_config.quant_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Turn token ids [S] into hidden states [S, D]."""
        x_SD: Tensor = self.embed_tokens(input_ids)
        return x_SD

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """Run this rank's layers; returns normalised hidden states [S, D] on the last rank, else what the next takes.

        The arguments are vLLM's own, by name: on the first rank tokens or their embeddings, on others what came.
        """
        x_SD: Tensor
        if intermediate_tensors is not None and not get_pp_group().is_first_rank:
            x_SD = intermediate_tensors["hidden_states"]
        elif inputs_embeds is not None:
            x_SD = inputs_embeds
        else:
            assert input_ids is not None, "vLLM gives the first pipeline rank tokens, and others hidden states"
            x_SD = self.embed_input_ids(input_ids)
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            x_SD = layer(positions, x_SD)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": x_SD})
        x_SD = self.norm(x_SD)
        return x_SD


class ArcticForCausalLM(nn.Module, SupportsPP):  # type: ignore[misc]  # vLLM is not typed where this is checked
    """The whole model, as vLLM's registry wants it."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "w13": ["w1", "w3"],
    }
    # Experts are named as in the checkpoint up to the stacking, which vLLM's own loader does; so the dots at both ends.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj.": (".qkv_proj.", "q"),
            ".k_proj.": (".qkv_proj.", "k"),
            ".v_proj.": (".qkv_proj.", "v"),
            ".residual_mlp.w1.": (".residual_mlp.w13.", 0),
            ".residual_mlp.w3.": (".residual_mlp.w13.", 1),
            ".block_sparse_moe.mlp.w1.": (".block_sparse_moe.mlp.w13.", 0),
            ".block_sparse_moe.mlp.w3.": (".block_sparse_moe.mlp.w13.", 1),
        },
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: ArcticConfig = vllm_config.model_config.hf_config
        self.config = config
        self.model = ArcticModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Turn token ids [S] into hidden states [S, D]."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """See `ArcticModel.forward`."""
        hidden: Tensor | IntermediateTensors = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Turn the last rank's hidden states [S, D] into logits [S, V]; None on tensor ranks that don't sample."""
        logits_SV: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits_SV

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the published names; returns vLLM's names of what was loaded, by which vLLM finds what was missing."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded
