"""Low-rank adapters beside a slice's weights: those of a group are the matrices of one product, as experts are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arctic_model import peft
from arctic_model.config import ArcticConfig
from arctic_model.devices import on_device
from arctic_model.lora import targets
from arctic_model.parallel import WHOLE, Cut, TensorSlice
from arctic_workers.inference.engines.native.adapters import Adapter
from arctic_workers.inference.engines.native.cuda.products import Matrices, Tiles, product, tile_size
from arctic_workers.inference.engines.native.step import Part

RANKS = 16
"""Ranks are padded with zeros to a multiple of so many."""


@dataclass(frozen=True)
class AdaptedRows:
    """The rows of a step that have an adapter, those of each together."""

    rows_R: Tensor
    """int64."""
    tiles: Tiles
    """A slot's matrix is its adapter."""
    base_tiles: Tiles
    """The same with the one matrix of all."""

    @classmethod
    def of(cls, parts: Sequence[Part], device: torch.device) -> "AdaptedRows | None":
        """Return those of a step; None where there are none."""
        by_adapter: dict[int, list[int]] = {}
        row = 0
        for part in parts:
            end = row + len(part.tokens)
            if part.adapter >= 0:
                by_adapter.setdefault(part.adapter, []).extend(range(row, end))
            row = end
        if not by_adapter:
            return None
        size = tile_size(max(map(len, by_adapter.values())))
        table, slot = [], 0
        for adapter, rows in by_adapter.items():
            end = slot + len(rows)
            table += [(adapter, first, min(size, end - first)) for first in range(slot, end, size)]
            slot = end
        rows_R = on_device(torch.tensor([row for rows in by_adapter.values() for row in rows]), device)
        tables = torch.tensor([table, [(0, *slots) for _, *slots in table]], dtype=torch.int32)
        own_M3, base_M3 = on_device(tables, device)
        return cls(rows_R, *(Tiles(table_M3, rows_R.int(), size) for table_M3 in (own_M3, base_M3)))


@dataclass(frozen=True)
class Addition:
    """What each adapter adds to a matrix, or to several side by side: `up @ down`, zero for one that does not."""

    down: Matrices
    up: Matrices

    def to(self, x_TD: Tensor, adapted: AdaptedRows) -> Tensor:
        """Return what is added to the rows of `adapted`, in their order: [R, N]."""
        return product(product(x_TD, self.down, adapted.tiles), self.up, adapted.tiles.of_slots())


@dataclass(frozen=True)
class Additions:
    """Those of a layer, None on what no adapter stands on."""

    qkv: Addition | None = None
    o: Addition | None = None
    w1: Addition | None = None
    w2: Addition | None = None
    w3: Addition | None = None


def additions_of(
    adapters: Sequence[Adapter],
    config: ArcticConfig,
    layers: Sequence[int],
    device: torch.device,
    share: TensorSlice = WHOLE,
) -> dict[int, Additions]:
    """Bring the adapters of a group, or a tensor rank's slice of them, to the device, layer by layer."""
    cuts = {name: share.cut(f"{name}.weight", shape) for name, shape in targets(config).items()}
    shapes = {name: (len(cut.rows), len(cut.columns or ())) for name, cut in cuts.items()}
    adapters = [{name: _cut(added, cuts[name]) for name, added in adapter.items()} for adapter in adapters]

    def stacked(layer: int, *names: str) -> Addition | None:
        return _stacked(
            adapters, {name: shapes[name] for name in (f"model.layers.{layer}.{each}" for each in names)}, device
        )

    made = {}
    for layer in layers:
        mlp = "residual_mlp" if config.has_experts(layer) else "block_sparse_moe.mlp"
        made[layer] = Additions(
            stacked(layer, *(f"self_attn.{name}_proj" for name in "qkv")),
            stacked(layer, "self_attn.o_proj"),
            *(stacked(layer, f"{mlp}.{name}") for name in ("w1", "w2", "w3")),
        )
    return made


def _cut(added: peft.Addition, cut: Cut) -> peft.Addition:
    """Return what is added to a slice of a matrix."""
    rows, columns = (slice(None) if part is None else slice(part.start, part.stop) for part in cut)
    return peft.Addition(added.a[:, columns], added.b[rows], added.scale)


def _stacked(
    adapters: Sequence[Adapter], shapes: Mapping[str, tuple[int, int]], device: torch.device
) -> Addition | None:
    """Return what is added to matrices of the same inputs, side by side, the ranks of one after those of the other."""
    ranks = [len(adapter[name].a) for adapter in adapters for name in shapes if name in adapter]
    if not ranks:
        return None
    rank = -(-max(ranks) // RANKS) * RANKS
    inputs = next(iter(shapes.values()))[1]
    down = torch.zeros(len(adapters), rank * len(shapes), inputs)
    up = torch.zeros(len(adapters), sum(outputs for outputs, _ in shapes.values()), rank * len(shapes))
    for index, adapter in enumerate(adapters):
        column = row = 0
        for name, (outputs, _) in shapes.items():
            if name in adapter:
                added = adapter[name]
                end = column + len(added.a)
                down[index, column:end] = added.a
                up[index, row : row + outputs, column:end] = added.scale * added.b
            column, row = column + rank, row + outputs
    return Addition(Matrices(on_device(down, device)), Matrices(on_device(up, device)))
