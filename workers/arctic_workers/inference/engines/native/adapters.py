"""Low-rank adapters beside the weights of a slice: read once, and added in torch where there is no compiled code."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from arctic_model.config import ArcticConfig
from arctic_model.lora import targets
from arctic_model.model import ArcticModel
from arctic_model.peft import AdapterError, Addition, read_adapter
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.invariant import ROWS, pad_rows

Adapter = Mapping[str, Addition]
"""What is added to each matrix that it stands on, by the matrix's name without `.weight`."""


def load_adapters(folders: Mapping[str, Path], config: ArcticConfig) -> list[Adapter]:
    """Read a group's adapters, in the order of their names. Raises Refused for one that does not fit the model."""
    adapters: list[Adapter] = []
    for name, folder in folders.items():
        try:
            adapters.append(read_adapter(folder, config))
        except AdapterError as error:
            raise Refused(f"adapter {name}: {error}") from None
    return adapters


class AdaptedLinear(nn.Module):
    """A linear map that adds to each part of a step what its adapter says."""

    def __init__(self, base: nn.Module, additions: Sequence[Addition | None]) -> None:
        super().__init__()
        self._base = base
        self._additions = additions
        self.parts: list[tuple[int, int]] = []
        """Of the step: which adapter each part has, -1 for none, and how many rows."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return [1, T, out] for [1, T, D]."""
        y_BTD: Tensor = self._base(x_BTD)
        start = 0
        for adapter, rows in self.parts:
            addition = self._additions[adapter] if adapter >= 0 else None
            if addition is not None:
                x_TD = pad_rows(x_BTD[0, start : start + rows])
                low_TR = functional.linear(x_TD, addition.a)
                added_TD = functional.linear(low_TR, addition.b)[:rows]
                y_BTD[0, start : start + rows] += added_TD
            start += rows
        return y_BTD


def _padded(addition: Addition | None) -> Addition | None:
    """Return the same with its scale in B, of a rank that is a multiple of `ROWS`: small ones have other kernels."""
    if addition is None:
        return None
    missing = -len(addition.a) % ROWS
    up = functional.pad(addition.scale * addition.b, (0, missing))
    return Addition(functional.pad(addition.a, (0, 0, 0, missing)), up, 1.0)


def adapt_model(model: ArcticModel, adapters: Sequence[Adapter]) -> list[AdaptedLinear]:
    """Put adapters beside the matrices of a slice, in place; returns what has to know of each step's parts."""
    adapted = []
    for name in targets(model.config):
        path, _, leaf = name.rpartition(".")
        if int(name.split(".")[2]) not in model.layers or not any(name in adapter for adapter in adapters):
            continue
        holder = model.get_submodule(path)
        adapted.append(AdaptedLinear(getattr(holder, leaf), [_padded(adapter.get(name)) for adapter in adapters]))
        setattr(holder, leaf, adapted[-1])
    return adapted
