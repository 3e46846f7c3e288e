"""Files of an adapter as the library peft has them: `adapter_config.json` and `adapter_model.safetensors`.

Its tensors carry the name of the module they stand on behind `base_model.model.`
(https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arctic_model.config import ArcticConfig, read_json
from arctic_model.lora import TARGETS, A, B, targets
from arctic_model.names import llama_name

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LLAMA_TARGETS = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
"""`TARGETS` of a model without experts, as a Llama calls them."""
_KEY = re.compile(rf"{re.escape(_PREFIX)}(.+)\.({A}|{B})\.weight")
_UNREAD = (
    "use_dora",
    "modules_to_save",
    "fan_in_fan_out",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
)
"""Settings that make an adapter something else than what is computed here."""
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin an adapter that take out of the model what they give to the adapter."""


class AdapterError(ValueError):
    """Files that are no adapter, or not one of this model."""


@dataclass(frozen=True)
class Addition:
    """What an adapter adds to one matrix: `scale * b @ a`."""

    a: Tensor
    b: Tensor
    scale: float


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], rank: int, alpha: float, base: str, *, is_llama: bool = False
) -> None:
    """Write an adapter's files into a folder that exists.

    Args:
        folder: where to.
        tensors: by their names here.
        rank, alpha: of the adapter.
        base: names the model that it stands on.
        is_llama: whether that goes by a Llama's names: peft passes over what stands on names that it does not have.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": rf".*\.{_LLAMA_TARGETS if is_llama else TARGETS}",
        "inference_mode": True,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    named = {
        f"{_PREFIX}{llama_name(name) if is_llama else name}": tensor.cpu().contiguous()
        for name, tensor in tensors.items()
    }
    save_file(named, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_adapter(folder: Path, config: ArcticConfig) -> dict[str, Addition]:
    """Read what an adapter adds, by the matrices that it stands on (see `arctic_model.lora.targets`).

    It may leave matrices out, and name those of a Llama as a Llama does. Raises AdapterError with a sentence where it
    is no adapter of linear maps, or does not fit a model of this configuration.
    """
    said = _read_config(folder)
    stored = _read_tensors(folder / WEIGHTS_FILE)
    places = targets(config)
    known = {llama_name(f"{name}.weight").removesuffix(".weight"): name for name in places} | {n: n for n in places}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        match = _KEY.fullmatch(key)
        if match is None or match[1] not in known:
            raise AdapterError(
                f"{folder / WEIGHTS_FILE} has {key}, which stands on nothing that an adapter of this model can: "
                "projections of attention, the residual MLP and MLPs of layers without experts"
            )
        parts.setdefault(match[1], {})[match[2]] = tensor
    return {known[name]: _addition(folder, name, part, places[known[name]], said) for name, part in parts.items()}


def _addition(
    folder: Path, name: str, part: Mapping[str, Tensor], shape: tuple[int, int], said: Mapping[str, Any]
) -> Addition:
    if missing := {A, B} - set(part):
        raise AdapterError(f"{folder / WEIGHTS_FILE} misses {name}.{min(missing)}.weight: copy the adapter again")
    a, b = part[A].float(), part[B].float()
    rank = _of_module(said, "rank_pattern", name, said["r"])
    if tuple(a.shape) != (rank, shape[1]) or tuple(b.shape) != (shape[0], rank):
        raise AdapterError(
            f"{folder / WEIGHTS_FILE}: {name} has {A} {list(a.shape)} and {B} {list(b.shape)} where the model has "
            f"{[rank, shape[1]]} and {[shape[0], rank]}: it was trained on another model"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise AdapterError(f"{folder / WEIGHTS_FILE}: {name} holds NaN or infinity: copy it again")
    alpha = _of_module(said, "alpha_pattern", name, said["lora_alpha"])
    return Addition(a, b, alpha / (rank**0.5 if said.get("use_rslora") else rank))


def _of_module(said: Mapping[str, Any], patterns: str, name: str, default: Any) -> Any:
    """Return a setting that may differ from module to module, as peft looks it up: the first pattern that ends it."""
    for pattern, value in (said.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{path} is not there: name a folder with an adapter in peft's layout")
    said = read_json(path)
    if said.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {said.get('peft_type')!r}; LORA alone is read")
    if said.get("bias", "none") != "none" or (other := next((key for key in _UNREAD if said.get(key)), None)):
        name = "bias" if said.get("bias", "none") != "none" else other
        raise AdapterError(f"{path}: {name} is {said[str(name)]!r}, which is not read: train the adapter without it")
    start = str(said.get("init_lora_weights"))
    if start.lower().startswith(_CHANGE_THE_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights is {start!r}, which changed the base model too: let peft save the adapter with "
            "path_initial_model_for_weight_conversion"
        )
    rank, alpha = said.get("r"), said.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise AdapterError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}: write a whole number and a number")
    return said


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise AdapterError(f"{path} is not there: save the adapter as safetensors") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or was cut short ({error}): copy it again") from None
