"""What our Arctic asks of TensorRT-LLM, in plain torch on the CPU: stand-ins of its layers, its loader, its ranks.

They have its names and keep its contracts as its published source tells them: what a constructor takes, which names a
module asks the checkpoint for, how a matrix is cut, which sums are left to whom, that the norm that adds writes over
its inputs, what pipeline ranks hand over. They show that our model is wired as Arctic is and finds its weights under
every degree. They show nothing of TensorRT-LLM itself: not its kernels, its precision, its speed, nor that it starts.

Ranks are threads; their collectives are a barrier and queues (`Wires`). Quantised weights are dequantised as they load.
"""

# mypy: ignore-errors
# Its shapes are those of TensorRT-LLM's own, which has no types.

import queue
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.attention import attention_mask
from arctic_model.layers import RotaryPositions, rotate

BLOCK = 128


class Wires:
    """What connects the ranks of one world."""

    def __init__(self, tensor: int, pipeline: int) -> None:
        self.reduced = 0
        self._barriers = [threading.Barrier(tensor, timeout=30) for _ in range(pipeline)]
        self._parts: list[dict[int, Tensor]] = [{} for _ in range(pipeline)]
        self._queues = [queue.SimpleQueue[Tensor]() for _ in range(tensor * pipeline)]

    def gathered(self, mapping: "Mapping", part: Tensor) -> list[Tensor]:
        """The parts of all tensor ranks, in order."""
        parts, barrier = self._parts[mapping.pp_rank], self._barriers[mapping.pp_rank]
        parts[mapping.tp_rank] = part
        barrier.wait()
        whole = [parts[rank] for rank in range(mapping.tp_size)]
        barrier.wait()
        return whole

    def summed(self, mapping: "Mapping", part: Tensor) -> Tensor:
        self.reduced += mapping.tp_rank == 0
        return torch.stack(self.gathered(mapping, part)).sum(0)

    def send(self, mapping: "Mapping", tensor: Tensor) -> None:
        self._queues[mapping.rank + mapping.tp_size].put(tensor.clone())

    def receive(self, mapping: "Mapping", into: Tensor) -> None:
        into.copy_(self._queues[mapping.rank].get(timeout=30))


@dataclass
class Mapping:
    """Where a rank is: tensor ranks are consecutive, pipeline ranks are rows of them."""

    wires: Wires
    rank: int = 0
    tp_size: int = 1
    pp_size: int = 1
    moe_ep_size: int = 1

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def pp_rank(self) -> int:
        return self.rank // self.tp_size

    def pp_layers(self, layers: int) -> list[int]:
        return torch.arange(layers).tensor_split(self.pp_size)[self.pp_rank].tolist()


@dataclass
class ModelConfig:
    pretrained_config: Any
    mapping: Mapping
    allreduce_strategy: str = "AUTO"


@dataclass
class AttentionMetadata:
    """A step's packed tokens: lengths of the sequences, which all begin here."""

    lengths: list[int]
    all_rank_num_tokens: None = None


@dataclass
class AllReduceParams:
    enable_allreduce: bool = True


class AllReduce(nn.Module):
    def __init__(self, mapping: Mapping, strategy: str) -> None:
        super().__init__()
        self.mapping = mapping

    def forward(self, part: Tensor, *, all_reduce_params: AllReduceParams | None = None) -> Tensor:
        if self.mapping.tp_size == 1 or not (all_reduce_params or AllReduceParams()).enable_allreduce:
            return part
        return self.mapping.wires.summed(self.mapping, part)


class TensorParallelMode(Enum):
    COLUMN = 0
    ROW = 1


def matrix(weights: dict[str, Tensor]) -> Tensor:
    """A matrix of a checkpoint, dequantised by whichever scales come with it."""
    weight = weights["weight"]
    if (scale := weights.get("weight_scale_inv")) is not None:
        spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return weight.float() * spread[: weight.shape[0], : weight.shape[1]]
    if (scale := weights.get("weight_scale")) is not None:
        return weight.float() * scale
    assert weight.dtype != torch.float8_e4m3fn
    return weight


class Linear(nn.Module):
    """Rows of `parts` matrices on top of each other, each cut by itself."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        quant_config: None = None,
        mapping: Mapping | None = None,
        mode: TensorParallelMode | None = None,
    ) -> None:
        super().__init__()
        assert not bias
        self.mapping, self.mode = mapping, mode
        size = mapping.tp_size if mapping else 1
        cuts = {TensorParallelMode.COLUMN: (size, 1), TensorParallelMode.ROW: (1, size), None: (1, 1)}[mode]
        assert out_features % cuts[0] == 0 == in_features % cuts[1]
        shape = (out_features // cuts[0], in_features // cuts[1])
        self.weight = nn.Parameter(torch.full(shape, torch.nan, dtype=dtype), requires_grad=False)

    def load_weights(self, weights: list[dict[str, Tensor]]) -> None:
        self.weight.copy_(torch.cat([self._shard(matrix(part)) for part in weights]))

    def _shard(self, whole: Tensor) -> Tensor:
        if self.mode is None or self.mapping is None:
            return whole
        return whole.chunk(self.mapping.tp_size, self.mode.value)[self.mapping.tp_rank]

    def forward(self, x: Tensor, all_reduce_params: AllReduceParams | None = None) -> Tensor:
        out = functional.linear(x, self.weight)
        if self.mode is TensorParallelMode.ROW and self.mapping is not None:
            return AllReduce(self.mapping, "AUTO")(out, all_reduce_params=all_reduce_params)
        return out


class LMHead(Linear):
    def __init__(self, vocabulary: int, hidden: int, *, dtype: torch.dtype, mapping: Mapping) -> None:
        padded = -(-vocabulary // mapping.tp_size) * mapping.tp_size
        super().__init__(hidden, padded, bias=False, dtype=dtype, mapping=mapping, mode=TensorParallelMode.COLUMN)
        self.vocabulary, self.hidden = vocabulary, hidden

    def _shard(self, whole: Tensor) -> Tensor:
        rows = self.weight.shape[0] * self.mapping.tp_size - whole.shape[0]  # type: ignore[union-attr]
        return super()._shard(functional.pad(whole, (0, 0, 0, rows)))

    def forward(self, x: Tensor, all_reduce_params: AllReduceParams | None = None) -> Tensor:
        part = super().forward(x)
        assert self.mapping is not None
        return torch.cat(self.mapping.wires.gathered(self.mapping, part), -1)[..., : self.vocabulary]

    def skip_forward(self, x: Tensor) -> Tensor:
        return x.new_full((*x.shape[:-1], self.vocabulary), torch.nan)


class Embedding(LMHead):
    def __init__(
        self,
        vocabulary: int,
        hidden: int,
        *,
        dtype: torch.dtype,
        mapping: Mapping,
        tensor_parallel_mode: TensorParallelMode,
        gather_output: bool,
    ) -> None:
        assert tensor_parallel_mode is TensorParallelMode.COLUMN
        assert gather_output
        super().__init__(vocabulary, hidden, dtype=dtype, mapping=mapping)

    def forward(self, ids: Tensor, all_reduce_params: AllReduceParams | None = None) -> Tensor:
        assert self.mapping is not None
        local = ids - self.mapping.tp_rank * self.weight.shape[0]
        here = (local >= 0) & (local < self.weight.shape[0])
        part = functional.embedding(local * here, self.weight) * here[:, None]
        return AllReduce(self.mapping, "AUTO")(part)

    def skip_forward(self, ids: Tensor) -> Tensor:
        return torch.full((*ids.shape, self.hidden), torch.nan)


class RMSNorm(nn.Module):
    """With a residual it returns the norm of the sum, and the sum; both written over its inputs, as flashinfer does."""

    def __init__(self, *, hidden_size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), torch.nan, dtype=dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor, residual: Any = ...) -> Any:
        if residual is ...:
            return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        residual += x
        x.copy_(functional.rms_norm(residual, x.shape[-1:], self.weight, self.eps))
        return x, residual

    def skip_forward(self, x: Tensor, residual: Any = ...) -> Any:
        return x if residual is ... else (x, residual)


@dataclass
class RopeParams:
    config: Any

    @classmethod
    def from_config(cls, config: Any) -> "RopeParams":
        return cls(config)


@dataclass
class PositionalEmbeddingParams:
    type: str
    rope: RopeParams


class Attention(nn.Module):
    def __init__(
        self,
        *,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        max_position_embeddings: int,
        bias: bool,
        pos_embd_params: PositionalEmbeddingParams,
        layer_idx: int,
        dtype: torch.dtype,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        mapping, self.head_dim = config.mapping, config.pretrained_config.head_dim
        assert pos_embd_params.type == "rope_gpt_neox"
        assert num_attention_heads % mapping.tp_size == 0
        self.heads = num_attention_heads // mapping.tp_size
        self.grouped = -(-num_key_value_heads // mapping.tp_size)
        self.rotary = RotaryPositions(pos_embd_params.rope.config.arctic)
        columns = (self.heads + 2 * self.grouped) * self.head_dim * mapping.tp_size
        cut: dict[str, Any] = {"bias": bias, "dtype": dtype, "mapping": mapping}
        self.qkv_proj = Linear(hidden_size, columns, mode=TensorParallelMode.COLUMN, **cut)
        self.o_proj = Linear(num_attention_heads * self.head_dim, hidden_size, mode=TensorParallelMode.ROW, **cut)

    def forward(
        self,
        position_ids: Tensor,
        hidden_states: Tensor,
        attn_metadata: AttentionMetadata,
        attention_window_size: int | None = None,
    ) -> Tensor:
        heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([self.heads, self.grouped, self.grouped], 1)
        rotation = self.rotary(position_ids)
        q, k = rotate(q, rotation), rotate(k, rotation)
        parts = [
            self._attend(*part, attention_window_size)
            for part in zip(*(each.split(attn_metadata.lengths) for each in (q, k, v)), strict=True)
        ]
        return self.o_proj(torch.cat(parts).flatten(1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        positions = torch.arange(q.shape[0])
        visible = attention_mask(positions, positions, window)
        q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return out[0].transpose(0, 1)


class GatedMLP(nn.Module):
    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        dtype: torch.dtype,
        config: ModelConfig,
        layer_idx: int,
    ) -> None:
        super().__init__()
        cut: dict[str, Any] = {"bias": bias, "dtype": dtype, "mapping": config.mapping}
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, mode=TensorParallelMode.COLUMN, **cut)
        self.down_proj = Linear(intermediate_size, hidden_size, mode=TensorParallelMode.ROW, **cut)

    def forward(self, x: Tensor, final_all_reduce_params: AllReduceParams | None = None) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(functional.silu(gate) * up, all_reduce_params=final_all_reduce_params)


@dataclass
class RenormalizeMoeRoutingMethod:
    """The k greatest logits, by a softmax among them: the same as renormalising after a softmax over all."""

    top_k: int

    def apply(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values, experts = logits.topk(self.top_k, dim=-1)
        return experts, functional.softmax(values.float(), dim=-1)


class MoE(nn.Module):
    """The experts of this rank, each cut over the ranks that share it; sums are left to the caller."""

    def __init__(self, routing: RenormalizeMoeRoutingMethod, hidden: int, inner: int, **cut: Any) -> None:
        super().__init__()
        mapping: Mapping = cut["mapping"]
        self.routing = routing
        self.shares = mapping.tp_size // mapping.moe_ep_size
        self.share, group = mapping.tp_rank % self.shares, mapping.tp_rank // self.shares
        count = cut["experts"] // mapping.moe_ep_size
        assert cut["experts"] % mapping.moe_ep_size == 0 == inner % self.shares
        self.local = range(group * count, (group + 1) * count)
        inner //= self.shares
        for name, shape in (("w1", (inner, hidden)), ("w3", (inner, hidden)), ("w2", (hidden, inner))):
            stacked = torch.full((count, *shape), torch.nan, dtype=cut["dtype"])
            self.register_parameter(name, nn.Parameter(stacked, requires_grad=False))

    def load_weights(self, weights: list[dict[str, Tensor]]) -> None:
        [named] = weights
        for place, expert in enumerate(self.local):
            for name, dim in (("w1", 0), ("w3", 0), ("w2", 1)):
                prefix = f"{expert}.{name}."
                found = {key.removeprefix(prefix): each for key, each in named.items() if key.startswith(prefix)}
                self.get_parameter(name)[place].copy_(matrix(found).chunk(self.shares, dim)[self.share])

    def forward(self, x: Tensor, logits: Tensor, *, all_rank_num_tokens: None, use_dp_padding: bool) -> Tensor:
        experts, weights = self.routing.apply(logits)
        out = torch.zeros_like(x)
        for place, expert in enumerate(self.local):
            w1, w3, w2 = (self.get_parameter(name)[place] for name in ("w1", "w3", "w2"))
            inner = functional.silu(functional.linear(x, w1)) * functional.linear(x, w3)
            out += functional.linear(inner, w2) * (weights * (experts == expert)).sum(-1, keepdim=True)
        return out


def create_moe(
    routing_method: RenormalizeMoeRoutingMethod,
    num_experts: int,
    hidden_size: int,
    intermediate_size: int,
    dtype: torch.dtype,
    reduce_results: bool,
    model_config: ModelConfig,
    aux_stream_dict: dict[str, object],
    layer_idx: int,
) -> MoE:
    assert not reduce_results
    assert list(aux_stream_dict) == ["MoeChunkingOverlap"]
    cut = {"mapping": model_config.mapping, "experts": num_experts, "dtype": dtype}
    return MoE(routing_method, hidden_size, intermediate_size, **cut)


class DecoderLayer(nn.Module):
    def skip_forward(self, position_ids: Tensor, hidden_states: Tensor, attn_metadata: Any, residual: Any = ...) -> Any:
        return hidden_states if residual is ... else (hidden_states, residual)


class DecoderModel(nn.Module):
    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__()
        self.model_config = model_config

    def cut(self) -> None:
        """Leave this rank its layers, and let its first receive and its last send."""
        mapping: Mapping = self.model_config.mapping
        mine = mapping.pp_layers(len(self.layers))
        first, last = mapping.pp_rank == 0, mapping.pp_rank == mapping.pp_size - 1
        for place, layer in enumerate(self.layers):
            if place not in mine:
                _skip(layer)
        if not first:
            _skip(self.embed_tokens)
            layer = self.layers[mine[0]]
            layer.forward = _receiving(layer.forward, mapping)
        if not last:
            _skip(self.norm)
            layer = self.layers[mine[-1]]
            layer.forward = _sending(layer.forward, mapping)


def _skip(module: nn.Module) -> None:
    module.forward = module.skip_forward
    for child in module.modules():
        child._parameters.clear()


def _receiving(forward: Callable[..., Any], mapping: Mapping) -> Callable[..., Any]:
    def run(position_ids: Any, hidden_states: Any, attn_metadata: Any, residual: Any = ..., **kwargs: Any) -> Any:
        mapping.wires.receive(mapping, hidden_states)
        assert residual is ...
        return forward(position_ids, hidden_states, attn_metadata, residual=residual, **kwargs)

    return run


def _sending(forward: Callable[..., Any], mapping: Mapping) -> Callable[..., Any]:
    def run(position_ids: Any, hidden_states: Any, attn_metadata: Any, residual: Any = ..., **kwargs: Any) -> Any:
        out = forward(position_ids, hidden_states, attn_metadata, residual=residual, **kwargs)
        assert residual is ...
        mapping.wires.send(mapping, out)
        return out

    return run


Trunk, Config = TypeVar("Trunk"), TypeVar("Config")
MODELS: dict[str, type] = {}
MAPPERS: dict[tuple[str, str], type] = {}


class DecoderModelForCausalLM(nn.Module, Generic[Trunk, Config]):
    def __init__(self, model: Any, *, config: ModelConfig, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.model_config, self.config = config, config.pretrained_config
        self.model = model
        mapping = config.mapping
        self.lm_head = LMHead(vocab_size, hidden_size, dtype=config.pretrained_config.torch_dtype, mapping=mapping)
        if mapping.pp_rank != mapping.pp_size - 1:
            _skip(self.lm_head)
        if mapping.pp_size > 1:
            model.cut()

    def forward(self, attn_metadata: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.lm_head(self.model(attn_metadata=attn_metadata, input_ids=input_ids, position_ids=position_ids))

    def load_weights(self, weights: dict[str, Tensor], weight_mapper: Any) -> None:
        for name, module in self.named_modules():
            if not module._parameters or (self.config.tie_word_embeddings and name == "lm_head"):
                continue
            *parents, own = name.split(".")
            if own in weight_mapper.mapping:
                module.load_weights(weight_mapper.fused(module, parents, own, weights))
                continue
            found = weight_mapper.filter_weights(name, weights)
            if hasattr(module, "load_weights"):
                module.load_weights([found])
                continue
            for key, parameter in module._parameters.items():
                parameter.copy_(found[key])


@dataclass
class HfWeightMapper:
    """Finds the parts of fused matrices, and holds key-value heads more than once where ranks outnumber them."""

    model: Any = None
    mapping: dict[str, list[str]] = field(
        default_factory=lambda: {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    )

    def filter_weights(self, prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key[len(prefix) + 1 :]: each for key, each in weights.items() if key.startswith(f"{prefix}.")}

    def fused(self, module: Any, parents: list[str], own: str, weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        parts = []
        for part in self.mapping[own]:
            found = self.filter_weights(".".join([*parents, part]), weights)
            if part in ("k_proj", "v_proj"):
                found["weight"] = self._repeated(found["weight"], module.mapping.tp_size)
            parts.append(found)
        return parts

    def _repeated(self, weight: Tensor, ranks: int) -> Tensor:
        heads = self.model.config.num_key_value_heads
        if heads >= ranks:
            return weight
        return weight.unflatten(0, (heads, -1)).repeat_interleave(ranks // heads, 0).flatten(0, 1)

    def rename_by_params_map(self, patterns: dict[str, str], weights: dict[str, Tensor]) -> dict[str, Tensor]:
        import re

        def renamed(name: str) -> str:
            for pattern, replacement in patterns.items():
                if re.match(pattern, name):
                    return re.sub(pattern, replacement, name)
            return name

        return {renamed(name): each for name, each in weights.items()}


def register_auto_model(name: str) -> Callable[[type], type]:
    return lambda cls: MODELS.setdefault(name, cls)


def register_mapper(form: str, name: str) -> Callable[[type], type]:
    return lambda cls: MAPPERS.setdefault((form, name), cls)


class PretrainedConfig:
    """Hugging Face's, as far as attributes go."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


class AutoConfig:
    registered: ClassVar[dict[str, type]] = {}

    @classmethod
    def register(cls, name: str, config: type, exist_ok: bool) -> None:
        cls.registered[name] = config


PLACES: dict[str, dict[str, object]] = {
    "transformers": {"AutoConfig": AutoConfig, "PretrainedConfig": PretrainedConfig},
    "tensorrt_llm": {},
    "tensorrt_llm.functional": {"PositionEmbeddingType": types.SimpleNamespace(rope_gpt_neox="rope_gpt_neox")},
    "tensorrt_llm._torch": {},
    "tensorrt_llm._torch.attention_backend": {"AttentionMetadata": AttentionMetadata},
    "tensorrt_llm._torch.attention_backend.interface": {
        "PositionalEmbeddingParams": PositionalEmbeddingParams,
        "RopeParams": RopeParams,
    },
    "tensorrt_llm._torch.distributed": {"AllReduce": AllReduce, "AllReduceParams": AllReduceParams},
    "tensorrt_llm._torch.model_config": {"ModelConfig": ModelConfig},
    "tensorrt_llm._torch.models": {},
    "tensorrt_llm._torch.models.checkpoints": {},
    "tensorrt_llm._torch.models.checkpoints.hf": {},
    "tensorrt_llm._torch.models.checkpoints.hf.weight_mapper": {"HfWeightMapper": HfWeightMapper},
    "tensorrt_llm._torch.models.modeling_utils": {
        "DecoderModel": DecoderModel,
        "DecoderModelForCausalLM": DecoderModelForCausalLM,
        "register_auto_model": register_auto_model,
        "register_mapper": register_mapper,
    },
    "tensorrt_llm._torch.modules": {},
    "tensorrt_llm._torch.modules.attention": {"Attention": Attention},
    "tensorrt_llm._torch.modules.decoder_layer": {"DecoderLayer": DecoderLayer},
    "tensorrt_llm._torch.modules.embedding": {"Embedding": Embedding},
    "tensorrt_llm._torch.modules.fused_moe": {
        "RenormalizeMoeRoutingMethod": RenormalizeMoeRoutingMethod,
        "create_moe": create_moe,
    },
    "tensorrt_llm._torch.modules.gated_mlp": {"GatedMLP": GatedMLP},
    "tensorrt_llm._torch.modules.linear": {"Linear": Linear, "TensorParallelMode": TensorParallelMode},
    "tensorrt_llm._torch.modules.rms_norm": {"RMSNorm": RMSNorm},
    "tensorrt_llm._torch.utils": {
        "AuxStreamType": types.SimpleNamespace(MoeChunkingOverlap="MoeChunkingOverlap"),
    },
}
OURS = tuple(
    f"arctic_workers.inference.engines.tensorrt_llm.{name}" for name in ("config", "modeling_arctic", "weights")
)


@contextmanager
def installed() -> Iterator[None]:
    """Put the stand-ins where TensorRT-LLM's modules would be, for a while; ours that import them go with them."""
    before = {name: sys.modules.get(name) for name in (*PLACES, *OURS)}
    stream = torch.cuda.Stream
    for name, content in PLACES.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module
    torch.cuda.Stream = object  # type: ignore[assignment, misc]  # there is no device here
    try:
        yield
    finally:
        torch.cuda.Stream = stream  # type: ignore[misc]
        MODELS.clear()
        MAPPERS.clear()
        AutoConfig.registered.clear()
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
                parent, _, own = name.rpartition(".")
                if parent in sys.modules:  # a package keeps its modules as attributes, too
                    vars(sys.modules[parent]).pop(own, None)
            else:
                sys.modules[name] = module
