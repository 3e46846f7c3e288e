"""A loaded slice of the model, run by the compiled code: the layers of a step, and logits of some of its rows."""

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from arctic_model.layers import MLP
from arctic_model.model import ArcticModel, DecoderLayer, DenseMLP
from arctic_model.moe import MoE
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.kernel.arena import release_freed
from arctic_workers.inference.engines.native.kernel.library import PARTS, LayerWeights, Matrix, Shape, Step, library
from arctic_workers.inference.engines.native.kernel.panels import FORMATS, Panels
from arctic_workers.inference.engines.native.step import Part


class KernelRank:
    """Takes a model's weights over: the model can't compute with them any more.

    Every result of a row has the same bits whatever shares its step, and however many threads there are.
    """

    def __init__(self, code: ctypes.CDLL, model: ArcticModel, cache: PagedCache, threads: int) -> None:
        config = model.config
        self._code = code
        self._model = model
        self._cache = cache
        self._vocabulary = config.vocab_size
        self._panels = Panels()
        layers = model.layers
        self._weights = (LayerWeights * len(layers))(*(self._layer(index, layer) for index, layer in layers.items()))
        norm, head = model.model.norm, model.lm_head
        self._norm = self._panels.pointer(norm.weight.float()) if norm is not None else None
        self._head = self._linear(head) if head is not None else None
        release_freed()
        shape = Shape(
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.num_local_experts,
            config.num_experts_per_tok,
            len(layers),
            FORMATS[cache.dtype],
            cache.block_size,
            threads,
            config.rms_norm_eps,
            cache.slots_of_a_head,
            *((cache.window.size, cache.window.sinks) if cache.window else (0, 0)),
        )
        self._rank = code.arctic_rank(shape, self._weights, self._norm, self._head)
        if not self._rank:
            raise MemoryError("no memory for the native engine's threads")
        weakref.finalize(self, code.arctic_free, self._rank)

    def _layer(self, index: int, layer: DecoderLayer) -> LayerWeights:
        attention, experts = layer.self_attn, layer.has_experts
        made = LayerWeights()
        made.input_norm = self._panels.pointer(layer.input_layernorm.weight.float())
        made.post_norm = self._panels.pointer(layer.post_attention_layernorm.weight.float())
        for name in ("q", "k", "v", "o"):
            setattr(made, name, self._linear(getattr(attention, f"{name}_proj")))
        if experts:
            made.residual_norm = self._panels.pointer(layer.residual_layernorm.weight.float())
            for name in ("w1", "w2", "w3"):
                setattr(made, f"residual_{name}", self._linear(getattr(layer.residual_mlp, name)))
            moe = cast("MoE", layer.block_sparse_moe)
            made.gate = self._linear(moe.router.gate)
            self._set_stacks(made, {name: self._stack(moe.experts, name) for name in ("w1", "w2", "w3")})
        else:
            mlp: MLP = cast("DenseMLP", layer.block_sparse_moe).mlp
            self._set_stacks(made, {name: [self._linear(getattr(mlp, name))] for name in ("w1", "w2", "w3")})
        made.keys, made.values = self._cache.pointers(index)
        release_freed()  # a layer is here now, and its parameters are not
        return made

    def _set_stacks(self, made: LayerWeights, stacks: dict[str, list[Matrix]]) -> None:
        for name, matrices in stacks.items():
            setattr(made, name, (Matrix * len(matrices))(*matrices))  # ctypes keeps what a field points to

    def _linear(self, module: nn.Module) -> Matrix:
        weight = module.get_parameter("weight")
        made = self._panels.matrix(weight.detach(), getattr(module, "weight_scale", None))
        _forget(weight)
        return made

    def _stack(self, module: nn.Module, name: str) -> list[Matrix]:
        weights = module.get_parameter(name)
        scales = getattr(module, f"{name}_scale", None)
        made = [
            self._panels.matrix(weight, None if scales is None else scales[expert])
            for expert, weight in enumerate(weights.detach())
        ]
        _forget(weights)
        return made

    def run(self, parts: Sequence[Part], x_TD: Tensor) -> Tensor:
        """Return the hidden states [T, D] after this rank's layers."""
        x_TD = x_TD.contiguous()
        positions = torch.cat([torch.arange(part.start, part.end) for part in parts])
        rotations = list(self._rotation(positions))
        starts, dropped, start = [], [], 0
        for part in parts:
            starts += [start] * len(part.tokens)
            dropped += [part.dropped] * len(part.tokens)
            start += len(part.blocks)
        tables = [block for part in parts for block in part.blocks]
        integers = (
            positions,
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(dropped),
            torch.tensor(tables, dtype=torch.int32),
        )
        step = Step(len(x_TD), *(tensor.data_ptr() for tensor in (*integers, *rotations)))
        self._check(self._code.arctic_run(self._rank, step, x_TD.data_ptr()))
        return x_TD

    def _rotation(self, positions: Tensor) -> Iterator[Tensor]:
        """Cosines and sines [T, H] of the rows, and those by which they meet sinks: of positions within the cache."""
        window = self._cache.window
        if window is None or not window.sinks:
            return (turned.contiguous() for turned in self._model.rotary(positions))
        turned = self._model.rotary(torch.stack((positions, positions.clamp(max=window.reach - 1))))
        return (both[of].contiguous() for of in range(2) for both in turned)

    def logits(self, x_TD: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the logits [R, V] of some rows."""
        out_RV = torch.empty(len(rows), self._vocabulary)
        places = torch.tensor(rows)
        self._check(
            self._code.arctic_logits(self._rank, x_TD.data_ptr(), places.data_ptr(), len(rows), out_RV.data_ptr())
        )
        return out_RV

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part of all steps so far."""
        return dict(zip(PARTS, self._code.arctic_seconds(self._rank)[: len(PARTS)], strict=True))

    def _check(self, code: int) -> None:
        if code:
            raise MemoryError("no memory is left for a step; write a smaller batching.tokenBudget")


def _forget(parameter: nn.Parameter) -> None:
    """Give a parameter's memory back."""
    parameter.data = torch.empty(0, dtype=parameter.dtype)


def kernel_rank(model: ArcticModel, cache: PagedCache, threads: int) -> KernelRank | None:
    """Return what runs a model's layers here, or None where torch has to."""
    code = library()
    return None if code is None else KernelRank(code, model, cache, threads)
