"""A loaded slice of the model on a GPU: how a step runs there.

What a step is goes to the device first (`inputs`). What every layer then does is in `_layer`: the experts read the
layer's input, so they and the dense branch run beside each other, on two streams, until the last sum. Nothing waits for
the device, so a whole step is a list of launches: where every sequence has one token it comes from a recording
(`graphs`), else it is started anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arctic_model.devices import on_device
from arctic_model.model import ArcticModel
from arctic_model.parallel import WHOLE, TensorSlice
from arctic_workers.inference.engines.native.adapters import Adapter
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.cuda import rounding
from arctic_workers.inference.engines.native.cuda.adapters import AdaptedRows, Addition, Additions, additions_of
from arctic_workers.inference.engines.native.cuda.attention import Attention, Extent, Step, attend, store
from arctic_workers.inference.engines.native.cuda.graphs import Graphs
from arctic_workers.inference.engines.native.cuda.inputs import Inputs, describe
from arctic_workers.inference.engines.native.cuda.norms import rms_norm
from arctic_workers.inference.engines.native.cuda.products import (
    Matrices,
    Tiles,
    dense_tiles,
    gated,
    product,
    tile_size,
)
from arctic_workers.inference.engines.native.cuda.rounding import LEAST_ROWS, experts_of, mlp_of, takes, takes_experts
from arctic_workers.inference.engines.native.cuda.routing import route, weighted_sum
from arctic_workers.inference.engines.native.cuda.streams import beside, join, second_stream
from arctic_workers.inference.engines.native.cuda.tensor import clear_others, own_tiles
from arctic_workers.inference.engines.native.cuda.weights import MLP, Experts, head_of, layers_of
from arctic_workers.inference.engines.native.invariant import silu
from arctic_workers.inference.engines.native.sampling import Likeliest
from arctic_workers.inference.engines.native.step import Part

Add = Callable[[Tensor], Tensor]
"""Adds up what the ranks that share a layer's heads and experts have of one tensor."""


@dataclass(frozen=True)
class _Pass:
    """What a step is to every layer. All of it is on the device before a layer begins, for both streams."""

    where: Step
    rows: Tiles
    """All rows, in order."""
    choosers: Tiles
    """The same with the rows whose choice of experts each takes."""
    adapted: AdaptedRows | None
    rounds: bool
    """Whether rows are rounded to FP8 where weights are in FP8."""


class CudaRank:
    """Takes a model's weights over, which are on the cache's device: the model can't compute with them any more.

    A row has the same bits whatever shares its step. Under Triton's interpreter the device may be the CPU.
    """

    def __init__(
        self,
        model: ArcticModel,
        cache: PagedCache,
        share: TensorSlice = WHOLE,
        add: Add = lambda x_TD: x_TD,
        *,
        rounds: bool = False,
    ) -> None:
        """Model and cache have a `share` of the layers, and `add` is where the ranks meet that share them.

        `rounds` whether steps of many rows round these to FP8, as `rounding` has it: then the promise above is for the
        others.
        """
        config = model.config
        self._config = config
        self._share = share
        self._experts = share.experts(config.num_local_experts)
        self._cache = cache
        self._device = cache.device
        self._add = add
        self._rounds = rounds
        self._attention = Attention.of(
            model.rotary,
            self._device,
            heads=config.num_attention_heads // share.ranks,
            groups=config.num_key_value_heads // share.ranks,
            block_size=cache.block_size,
            window=cache.window,
        )
        embedding = model.model.embed_tokens
        self._embedding_VD = None if embedding is None else embedding.weight.detach()
        self._layers = layers_of(model)
        self._head = head_of(model)
        self._additions: dict[int, Additions] = {}
        self._tiles: dict[int, Tiles] = {}
        self._side = second_stream(self._device)
        self._graphs = Graphs(self._compute, self._attention, self._device)

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """See `Compute`."""
        self._additions = additions_of(adapters, self._config, list(self._layers), self._device, self._share)

    def seconds(self) -> dict[str, float]:
        """See `Compute`: nobody waits for parts of a step, so nobody knows."""
        return {}

    def run(self, parts: Sequence[Part], x_TD: Tensor | None) -> Tensor:
        """See `Compute`."""
        if x_TD is None and self._embedding_VD is None:
            raise RuntimeError("this slice of the model has no embedding: it takes hidden states")
        if all(len(part.tokens) == 1 and part.adapter < 0 for part in parts):
            return self._graphs.run(parts, x_TD)
        extent = Extent.of(parts, self._attention)
        numbers = on_device(describe(parts, extent, self._attention), self._device)
        return self._compute(Inputs(extent, numbers, x_TD, AdaptedRows.of(parts, self._device)))

    def logits(self, x_TD: Tensor, rows: Sequence[int]) -> tuple[Tensor, Likeliest]:
        """See `Compute`."""
        if self._head is None:
            raise RuntimeError("this slice of the model has no output matrix: it returns hidden states")
        every = list(rows) == list(range(len(x_TD)))  # as where each sequence has one token
        x_RD = x_TD if every else x_TD.index_select(0, on_device(torch.tensor(rows), self._device))
        normed_RD = rms_norm(x_RD, self._head.norm_D, self._config.rms_norm_eps)
        logits_RV = product(normed_RD, self._head.matrix, self._all_rows(len(rows)))
        return logits_RV, logits_RV.argmax(-1)

    def _compute(self, inputs: Inputs) -> Tensor:
        """Return the hidden states after the slice's layers, [T, D]."""
        choosers_T, tokens_T = inputs.rows
        rows = self._all_rows(len(tokens_T))
        step = _Pass(
            Step.of(inputs.numbers, inputs.extent, self._attention),
            rows,
            replace(rows, rows_R=choosers_T),
            inputs.adapted,
            self._rounds and len(tokens_T) >= LEAST_ROWS and inputs.adapted is None,
        )
        x_TD = inputs.x_TD
        if x_TD is None and self._embedding_VD is not None:
            x_TD = self._embedding_VD.index_select(0, tokens_T).float()
        assert x_TD is not None
        for index in self._layers:
            x_TD = self._layer(index, x_TD, step)
        return x_TD

    def _layer(self, index: int, x_TD: Tensor, step: _Pass) -> Tensor:
        """Return a layer's output."""
        layer = self._layers[index]
        with beside(self._side):
            chosen_TD = None if layer.experts is None else self._run_experts(layer.experts, x_TD, step)
        h_TD = x_TD + self._add(self._attend(index, x_TD, step))
        y_TD = self._run_mlp(index, h_TD, step)
        join(self._side)
        if chosen_TD is not None:
            y_TD += chosen_TD
        return h_TD + self._add(y_TD)

    def _attend(self, index: int, x_TD: Tensor, step: _Pass) -> Tensor:
        layer, additions = self._layers[index], self._additions.get(index, Additions())
        normed_TD = self._norm(x_TD, layer.attention_norm_D)
        several = [_product(normed_TD, matrices, step) for matrices in layer.qkv]
        qkv_TX = several[0] if len(several) == 1 else torch.cat(several, dim=1)
        _add_low_rank(qkv_TX, normed_TD, additions.qkv, step.adapted)
        tensors = self._cache.tensors(index)
        queries = store(tensors, qkv_TX, step.where, self._attention)
        out_TX = attend(queries, tensors, step.where, self._attention).flatten(1)
        y_TD = _product(out_TX, layer.o, step)
        _add_low_rank(y_TD, out_TX, additions.o, step.adapted)
        return y_TD

    def _run_mlp(self, index: int, h_TD: Tensor, step: _Pass) -> Tensor:
        layer, additions = self._layers[index], self._additions.get(index, Additions())
        normed_TD = self._norm(h_TD, layer.mlp_norm_D)
        if step.rounds and takes(*layer.mlp):
            return mlp_of(normed_TD, layer.mlp)
        inner_TF = _gate(normed_TD, layer.mlp, step.rows)
        if step.adapted is not None:
            # Rows without an adapter keep the bits that they have in any other company.
            inner_TF[step.adapted.rows_R] = _gate_adapted(normed_TD, layer.mlp, additions, step.adapted)
        y_TD = product(inner_TF, layer.mlp.w2, step.rows)
        _add_low_rank(y_TD, inner_TF, additions.w2, step.adapted)
        return y_TD

    def _run_experts(self, experts: Experts, x_TD: Tensor, step: _Pass) -> Tensor:
        """Return the weighted sums of what each row's experts say, [T, D]."""
        normed_TD = self._norm(x_TD, experts.norm_D)
        logits_TE = product(normed_TD, experts.gate, step.choosers)
        chosen = self._config.num_experts_per_tok
        # For experts that get twice their share: one whose rows are cut is read twice.
        routes = route(logits_TE, chosen, tile_size(2 * chosen * len(x_TD) // logits_TE.shape[1]))
        if step.rounds and takes_experts(experts.mlps):
            return weighted_sum(experts_of(normed_TD, experts.mlps, routes), routes)
        tiles = own_tiles(routes.tiles, self._experts) if self._share.whole_experts else routes.tiles
        inner_RF = _gate(normed_TD, experts.mlps, tiles)
        y_RD = product(inner_RF, experts.mlps.w2, tiles.of_slots())
        if self._share.whole_experts:
            clear_others(y_RD, routes.tiles, self._experts)
        return weighted_sum(y_RD, routes)

    def _norm(self, x_TD: Tensor, weight_D: Tensor) -> Tensor:
        return rms_norm(x_TD, weight_D, self._config.rms_norm_eps)

    def _all_rows(self, rows: int) -> Tiles:
        """Return the tiles of one matrix and all rows, on the device since the first time."""
        if rows not in self._tiles:
            tiles = dense_tiles(rows, "cpu")
            self._tiles[rows] = replace(tiles, table_M3=on_device(tiles.table_M3, self._device))
        return self._tiles[rows]


def _product(x_TD: Tensor, matrices: Matrices, step: _Pass) -> Tensor:
    if step.rounds and takes(matrices):
        return rounding.product(x_TD, matrices)
    return product(x_TD, matrices, step.rows)


def _gate(x_TD: Tensor, mlp: MLP, tiles: Tiles) -> Tensor:
    """Return `silu(w1 x) * w3 x`: [slots, F]."""
    if _alike(mlp.w1, mlp.w3):
        return gated(x_TD, mlp.w1, mlp.w3, tiles)
    return silu(product(x_TD, mlp.w1, tiles)) * product(x_TD, mlp.w3, tiles)


def _alike(first: Matrices, second: Matrices) -> bool:
    """Whether a kernel takes both at once: a checkpoint may have one in FP8 and one in bf16."""
    return first.values.dtype == second.values.dtype and first.block == second.block


def _gate_adapted(x_TD: Tensor, mlp: MLP, additions: Additions, adapted: AdaptedRows) -> Tensor:
    """Return `silu(w1 x) * w3 x` of the rows with an adapter, in their order: [R, F]."""
    inner = []
    for matrices, addition in ((mlp.w1, additions.w1), (mlp.w3, additions.w3)):
        y_RF = product(x_TD, matrices, adapted.base_tiles)
        inner.append(y_RF if addition is None else y_RF + addition.to(x_TD, adapted))
    return silu(inner[0]) * inner[1]


def _add_low_rank(y_TN: Tensor, x_TD: Tensor, addition: Addition | None, adapted: AdaptedRows | None) -> None:
    """Add, in place, what the adapters of a step add to a matrix."""
    if addition is not None and adapted is not None:
        y_TN.index_add_(0, adapted.rows_R, addition.to(x_TD, adapted))
