"""A loaded slice of the model, run by the compiled code: the layers of a step, and logits of some of its rows."""

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from arctic_model.layers import MLP
from arctic_model.model import ArcticModel, DecoderLayer, DenseMLP
from arctic_model.moe import MoE
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.kernel.arena import release_freed
from arctic_workers.inference.engines.native.kernel.library import (
    PARTS,
    Ends,
    LayerWeights,
    Matrix,
    Shape,
    Step,
    library,
)
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
        self._hidden = config.hidden_size
        self._panels = Panels()
        layers = model.layers
        self._weights = (LayerWeights * len(layers))(*(self._layer(index, layer) for index, layer in layers.items()))
        self._ends = self._of_ends(model)
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
        self._rank = code.arctic_rank(shape, self._weights, self._ends)
        if not self._rank:
            raise MemoryError("no memory for the native engine's threads")
        weakref.finalize(self, code.arctic_free, self._rank)

    def _of_ends(self, model: ArcticModel) -> Ends:
        embedding, norm, head = model.model.embed_tokens, model.model.norm, model.lm_head
        rotary = model.rotary
        ends = Ends(frequencies=self._panels.pointer(rotary.frequencies_H2.double()), magnitude=rotary.magnitude)
        if embedding is not None:
            weight = embedding.weight.detach().contiguous()
            ends.embedding = Matrix(self._panels.pointer(weight), None, FORMATS[weight.dtype], *weight.shape, 0)
        if norm is not None and head is not None:
            ends.norm = self._panels.pointer(norm.weight.float())
            ends.head = self._linear(head)
        return ends

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
        for name, tensor in self._cache.tensors(index).items():
            setattr(made, name, tensor.data_ptr())
        release_freed()  # a layer is here now, and its parameters are not
        return made

    def _set_stacks(self, made: LayerWeights, stacks: dict[str, list[Matrix]]) -> None:
        for name, matrices in stacks.items():
            setattr(made, name, (Matrix * len(matrices))(*matrices))  # ctypes keeps what a field points to

    def _linear(self, module: nn.Module) -> Matrix:
        weight = module.get_parameter("weight")
        scale, block = getattr(module, "weight_scale", None), getattr(module, "block", None)
        made = self._panels.matrix(weight.detach(), scale, block)
        _forget(weight)
        return made

    def _stack(self, module: nn.Module, name: str) -> list[Matrix]:
        weights = module.get_parameter(name)
        scales, block = getattr(module, f"{name}_scale", None), getattr(module, "block", None)
        made = [
            self._panels.matrix(weight, None if scales is None else scales[expert], block)
            for expert, weight in enumerate(weights.detach())
        ]
        _forget(weights)
        return made

    def run(self, parts: Sequence[Part], x_TD: Tensor | None) -> Tensor:
        """See `Compute`."""
        spans, tables, tokens = array("q"), array("q"), array("q")
        rows = 0
        for part in parts:
            length = len(part.tokens)
            spans.extend((part.start, length, len(tables), part.dropped))
            tables.extend(part.blocks)
            if x_TD is None:
                tokens.extend(part.tokens)
            rows += length
        step = Step(rows, len(parts), _place(spans), _place(tables), None if x_TD is not None else _place(tokens))
        x_TD = torch.empty(rows, self._hidden) if x_TD is None else x_TD.contiguous()
        self._check(self._code.arctic_run(self._rank, step, x_TD.data_ptr()))
        return x_TD

    def logits(self, x_TD: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """See `Compute`."""
        logits_RV = torch.empty(len(rows), self._vocabulary)
        places, likeliest = array("q", rows), array("q", bytes(8 * len(rows)))
        self._check(
            self._code.arctic_logits(
                self._rank, x_TD.data_ptr(), _place(places), len(rows), logits_RV.data_ptr(), _place(likeliest)
            )
        )
        return logits_RV, likeliest.tolist()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part of all steps so far."""
        return dict(zip(PARTS, self._code.arctic_seconds(self._rank)[: len(PARTS)], strict=True))

    def _check(self, code: int) -> None:
        if code:
            raise MemoryError("no memory is left for a step; write a smaller batching.tokenBudget")


def _place(numbers: "array[int]") -> int:
    """Return where integers are; who calls keeps them."""
    return numbers.buffer_info()[0]


def _forget(parameter: nn.Parameter) -> None:
    """Give a parameter's memory back."""
    parameter.data = torch.empty(0, dtype=parameter.dtype)


def kernel_rank(model: ArcticModel, cache: PagedCache, threads: int) -> KernelRank | None:
    """Return what runs a model's layers here, or None where torch has to."""
    code = library()
    return None if code is None else KernelRank(code, model, cache, threads)
