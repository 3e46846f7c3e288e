"""What the command line chooses, the model and the device; and what may be written into a manifest instead."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arctic_api.verdict import Problem, verdict
from arctic_cli.machine import this_machine
from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest
from arctic_model.config import ArcticConfig, read_json
from arctic_model.planning.costs import Costs, read_costs
from arctic_model.planning.devices import DEVICES, Device

CPU = "cpu"


@dataclass(frozen=True)
class Choice:
    """Options of `arctic plan`; what is None was not given."""

    preset: str | None
    config_file: Path | None
    device_name: str | None
    devices_per_node: int | None
    costs_file: Path | None = None

    def costs(self) -> Costs | None:
        """Return the costs of this machine that were named; None where none were. Raises ManifestError."""
        if self.costs_file is None:
            return None
        try:
            return read_costs(self.costs_file)
        except ValueError as error:
            raise ManifestError(str(error)) from None

    def model(self) -> tuple[ArcticConfig, str] | None:
        """Return the model that was named, and by what; None where none was."""
        if self.preset and self.config_file:
            raise ManifestError("--preset and --config both name the model: write one of them")
        if self.preset:
            return ArcticConfig.preset(self.preset), f"preset {self.preset}"
        if self.config_file:
            try:
                return ArcticConfig.from_dict(read_json(self.config_file), str(self.config_file)), str(self.config_file)
            except ValueError as error:
                raise ManifestError(str(error)) from None
        return None

    def device(self, default: str) -> Device:
        """Return the device that was named, or the default."""
        name = self.device_name or default
        if name == CPU:
            if self.devices_per_node is not None:
                raise ManifestError("--devices-per-node is for GPUs: this machine is one device")
            return this_machine()
        device = DEVICES[name]
        return device if self.devices_per_node is None else replace(device, per_node=self.devices_per_node)


def brings_no_problem(manifest: Manifest, fields: Mapping[str, int | str], refused: Sequence[Problem]) -> bool:
    """Whether a manifest with fields of its specification written is refused for nothing but what it was `refused`."""
    return set(verdict(_written(manifest.content, fields))) <= set(refused)


def _written(manifest: dict[str, Any], fields: Mapping[str, int | str]) -> dict[str, Any]:
    """Return a copy of a manifest with fields of its specification written."""
    content = copy.deepcopy(manifest)
    for path, value in fields.items():
        *steps, last = path.split(".")
        node = content["spec"]
        for step in steps:
            node = node.setdefault(step, {})
        node[last] = value
    return content
