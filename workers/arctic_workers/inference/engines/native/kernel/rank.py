"""A loaded slice of the model, run by the compiled code: the layers of a step, and logits of some of its rows."""

import ctypes
import logging
import os
import weakref
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.layers import MLP
from arctic_model.model import ArcticModel, DecoderLayer, DenseMLP
from arctic_model.moe import MoE
from arctic_workers.inference.engines.native.adapters import Adapter
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.kernel.arena import release_freed
from arctic_workers.inference.engines.native.kernel.library import (
    PARTS,
    TARGETS,
    Addition,
    Ends,
    LayerAdditions,
    LayerWeights,
    Matrix,
    Shape,
    Step,
    library,
)
from arctic_workers.inference.engines.native.kernel.nodes import ANYWHERE, Cpus, bits_of, cpus_of_ranks
from arctic_workers.inference.engines.native.kernel.panels import FORMATS, LANES, Panels
from arctic_workers.inference.engines.native.step import Part

log = logging.getLogger(__name__)


class KernelRank:
    """Takes a model's weights over: the model can't compute with them any more.

    Every result of a row has the same bits whatever shares its step, and however many threads and tensor ranks there
    are.
    """

    def __init__(
        self,
        code: ctypes.CDLL,
        model: ArcticModel,
        cache: PagedCache,
        threads: int,
        cpus: Sequence[Cpus] = (ANYWHERE,),
        *,
        whole_experts: bool = False,
        rounds: bool = False,
    ) -> None:
        """`cpus` has one for each tensor rank, of which there are at most as many as threads: where its threads run.

        Ranks have a slice of each expert, or `whole_experts`. If it `rounds`, rows are rounded to bf16 for weights in
        FP8, which `multiplies_bf16` must say that the code can.
        """
        config = model.config
        self._code = code
        self._model = model
        self._cache = cache
        self._vocabulary = config.vocab_size
        self._hidden = config.hidden_size
        self._tensor = len(cpus)
        self._whole_experts = whole_experts
        self._panels = Panels(code, cpus, rounds=rounds)
        layers = model.layers
        parts = zip(*(self._layer(index, layer) for index, layer in layers.items()), strict=True)
        self._weights = (LayerWeights * (self._tensor * len(layers)))(*chain.from_iterable(parts))
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
            self._tensor,
            rounds,
            config.rms_norm_eps,
            cache.slots_of_a_head,
            *((cache.window.size, cache.window.sinks) if cache.window else (0, 0)),
        )
        bound = b"".join(map(bits_of, cpus)) if all(cpus) else None
        self._rank = code.arctic_rank(shape, self._weights, self._ends, bound)
        if not self._rank:
            raise MemoryError("no memory for the native engine's threads")
        weakref.finalize(self, code.arctic_free, self._rank)

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """See `Compute`."""
        layers = list(self._model.layers)
        placed = [self._additions(adapter, layer) for adapter in adapters for layer in layers]
        self._adapters = (LayerAdditions * len(placed))(*placed)
        self._code.arctic_adapt(self._rank, self._adapters, len(adapters))

    def _additions(self, adapter: Adapter, layer: int) -> LayerAdditions:
        """Return an adapter's part in a layer: matrices that it does not stand on have rank 0."""
        mlp = "residual_mlp" if self._model.config.has_experts(layer) else "block_sparse_moe.mlp"
        part = LayerAdditions()
        for place, target in enumerate(TARGETS):
            name = f"self_attn.{target}_proj" if len(target) == 1 else f"{mlp}.{target}"
            if (found := adapter.get(f"model.layers.{layer}.{name}")) is None:
                continue
            down = functional.pad(found.a, (0, -found.a.shape[1] % LANES)).contiguous()
            up = functional.pad(found.scale * found.b, (0, 0, 0, -len(found.b) % LANES))
            panels = up.view(-1, LANES, len(found.a)).transpose(1, 2).contiguous()
            part.of[place] = Addition(self._panels.pointer(down), self._panels.pointer(panels), *found.a.shape)
        return part

    def _of_ends(self, model: ArcticModel) -> Ends:
        embedding, norm, head = model.model.embed_tokens, model.model.norm, model.lm_head
        rotary = model.rotary
        ends = Ends(frequencies=self._panels.pointer(rotary.frequencies_H2.double()), magnitude=rotary.magnitude)
        if embedding is not None:
            weight = embedding.weight.detach().contiguous()
            ends.embedding = Matrix(self._panels.pointer(weight), None, FORMATS[weight.dtype], *weight.shape, 0)
        if norm is not None and head is not None:
            ends.norm = self._panels.pointer(norm.weight.float())
            ends.head = (Matrix * self._tensor)(*self._linear(head))
        return ends

    def _layer(self, index: int, layer: DecoderLayer) -> list[LayerWeights]:
        """Return a layer as each tensor rank has it."""
        made = [LayerWeights() for _ in range(self._tensor)]
        norms = {"input": layer.input_layernorm, "post": layer.post_attention_layernorm}
        for name in ("q", "k", "v", "o"):
            _share_out(made, name, self._linear(getattr(layer.self_attn, f"{name}_proj")))
        if layer.has_experts:
            norms["residual"] = layer.residual_layernorm
            for name in ("w1", "w2", "w3"):
                _share_out(made, f"residual_{name}", self._linear(getattr(layer.residual_mlp, name)))
            moe = cast("MoE", layer.block_sparse_moe)
            _share_out(made, "gate", self._linear(moe.router.gate))
            stacks = {name: self._stack(moe.experts, name) for name in ("w1", "w2", "w3")}
        else:
            mlp: MLP = cast("DenseMLP", layer.block_sparse_moe).mlp
            stacks = {name: [self._linear(getattr(mlp, name))] for name in ("w1", "w2", "w3")}
        for name, stack in stacks.items():
            # ctypes keeps what a field points to
            _share_out(made, name, [(Matrix * len(stack))(*own) for own in zip(*stack, strict=True)])
        for name, norm in norms.items():
            _share_out(made, f"{name}_norm", [self._panels.pointer(norm.weight.float())] * self._tensor)
        for name, tensor in self._cache.tensors(index).items():
            _share_out(made, name, [tensor.data_ptr()] * self._tensor)
        release_freed()  # a layer is here now, and its parameters are not
        return made

    def _linear(self, module: nn.Module) -> list[Matrix]:
        """Return what each tensor rank has of a weight."""
        weight = module.get_parameter("weight")
        scale, block = getattr(module, "weight_scale", None), getattr(module, "block", None)
        made = self._panels.matrices(weight.detach(), scale, block)
        _forget(weight)
        return made

    def _stack(self, module: nn.Module, name: str) -> list[list[Matrix]]:
        """Return what each tensor rank has of each expert: of one that is a rank's own, the others have none."""
        weights = module.get_parameter(name)
        scales, block = getattr(module, f"{name}_scale", None), getattr(module, "block", None)
        made = [
            self._panels.matrices(
                weight,
                None if scales is None else scales[expert],
                block,
                owner=expert * self._tensor // len(weights) if self._whole_experts else None,
            )
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
            spans.extend((part.start, length, len(tables), part.dropped, part.adapter))
            tables.extend(part.blocks)
            if x_TD is None:
                tokens.extend(part.tokens)
            rows += length
        step = Step(rows, len(parts), _place(spans), _place(tables), None if x_TD is not None else _place(tokens))
        x_TD = _memory(rows, self._hidden) if x_TD is None else x_TD.contiguous()
        self._check(self._code.arctic_run(self._rank, step, x_TD.data_ptr()))
        return x_TD

    def logits(self, x_TD: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """See `Compute`."""
        logits_RV = _memory(len(rows), self._vocabulary)
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


def _memory(rows: int, columns: int) -> Tensor:
    """Return a matrix without values.

    torch gives the interpreter up as it takes memory: who is told of tokens would go first, and a step begin later.
    """
    return torch.from_numpy(np.empty((rows, columns), np.float32))


def _forget(parameter: nn.Parameter) -> None:
    """Give a parameter's memory back."""
    parameter.data = torch.empty(0, dtype=parameter.dtype)


def _share_out(parts: Sequence[LayerWeights], name: str, values: Sequence[object]) -> None:
    """Give each tensor rank its own."""
    for part, value in zip(parts, values, strict=True):
        setattr(part, name, value)


def kernel_rank(
    model: ArcticModel, cache: PagedCache, threads: int, tensor: int, *, whole_experts: bool, rounds: bool
) -> KernelRank | None:
    """Return what runs a model's layers here, or None where torch has to; what it is told is as in `KernelRank`."""
    code = library()
    if code is None:
        return None
    cpus = cpus_of_ranks(tensor, threads, os.sched_getaffinity(0))
    if tensor > 1:
        where = "have a NUMA node each" if all(cpus) else "run on any CPU: NUMA nodes don't match them"
        what = "has experts of its own" if whole_experts else "has a slice of each expert"
        log.info("%d tensor ranks share %d threads and %s; each %s", tensor, threads, where, what)
    return KernelRank(code, model, cache, threads, cpus, whole_experts=whole_experts, rounds=rounds)
