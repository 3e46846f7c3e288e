"""How checkpoints say that their weights are FP8, and in which layout: read and written as published. Pure, no torch.

Beside each e4m3 `weight` is a `weight_scale` by which it is multiplied, for the tensor, an output channel, or a block.
Sources: `compressed_tensors/quantization` (quant_config.py, quant_scheme.py) and vLLM's readers `compressed_tensors`,
`modelopt` and `fp8`, which take all of them; DeepSeek-V3 for `weight_scale_inv`, which multiplies too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json

KEY = "quantization_config"
"""Key of config.json that says in which format weights are stored, if not as they are computed with."""
MODELOPT_FILE = "hf_quant_config.json"
BLOCK = 128
"""Rows and columns of a block that is written."""

Layout = Literal["compressed-tensors", "modelopt", "fp8"]
Scales = Literal["tensor", "channel", "block"]

_ALGORITHMS: dict[str, Scales] = {
    "FP8": "tensor",
    "FP8_PER_CHANNEL_PER_TOKEN": "channel",
    "FP8_PB_WO": "block",
    "FP8_BLOCK_SCALES": "block",
}
_EIGHT_BITS = {"num_bits": 8, "type": "float", "symmetric": True}


@dataclass(frozen=True)
class Quantization:
    """FP8 weights as a checkpoint stores them; which of its tensors are, their types say."""

    layout: Layout
    scales: Scales
    block: tuple[int, int] = (BLOCK, BLOCK)
    """Rows and columns that share a scale, with `scales` by block."""

    @property
    def scale_block(self) -> tuple[int, int] | None:
        """Rows and columns of a block that has a scale; None without such."""
        return self.block if self.scales == "block" else None

    @property
    def scale_suffix(self) -> str:
        """What the name of a weight's scales ends in, where the weight's ends in `weight`."""
        return "weight_scale_inv" if self.layout == "fp8" and self.scales == "block" else "weight_scale"

    def scale_name(self, weight: str) -> str:
        """Name of a weight's scales, as it is written."""
        return weight.removesuffix("weight") + self.scale_suffix

    def scale_names(self, weight: str) -> tuple[str, ...]:
        """Names that a weight's scales may have in what others wrote, the most usual first."""
        name = self.scale_name(weight)
        # Hugging Face's own FP8 gives a scale a tensor the name of those of blocks.
        return (name, f"{name}_inv") if (self.layout, self.scales) == ("fp8", "tensor") else (name,)

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape in which the scales of a weight [out, in] are written."""
        rows, columns = (-(-size // part) for size, part in zip(shape, self.block, strict=True))
        if self.scales == "block":
            return (rows, 1, columns, 1) if self.layout == "modelopt" else (rows, columns)
        if self.scales == "channel":
            return (shape[0], 1) if self.layout == "compressed-tensors" else (shape[0],)
        return (1,) if self.layout == "compressed-tensors" else ()

    def describe(self) -> str:
        """In words, for people."""
        part = f"block of {self.block[0]} x {self.block[1]}" if self.scales == "block" else self.scales
        return f"FP8 as {self.layout} stores it, a scale a {part}"


def read_quantization(folder: Path) -> Quantization | None:
    """Read how a checkpoint folder's weights are stored; None where they are as they are computed with.

    Raises ValueError with a sentence where it is another form than FP8 in one of the layouts.
    """
    path = folder / CONFIG_FILE
    content = read_json(path).get(KEY)
    if content is None and (folder / MODELOPT_FILE).exists():
        path = folder / MODELOPT_FILE
        content = {"quant_method": "modelopt", **(_object(read_json(path), "quantization", path))}
    return None if content is None else parse_quantization(content, str(path))


def unrounded_config(folder: Path) -> ArcticConfig:
    """Read the configuration of a checkpoint that training may start from: what was rounded is no start.

    Raises ValueError with a sentence where its weights were, or it can't be read.
    """
    stored = read_quantization(folder)
    if stored is not None:
        raise ValueError(
            f"{folder}: its weights are {stored.describe()}, and training starts from what was not rounded: name the "
            "checkpoint that they are of"
        )
    return ArcticConfig.from_folder(folder, quantized=True)  # at most its cache is


def parse_quantization(content: Any, source: str) -> Quantization | None:
    """Read a `quantization_config`; None where it is about the cache or activations alone.

    Raises ValueError; `source` is what it calls the place of the content.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{source}: {KEY} is {content!r}; write an object, or leave it out")
    method = content.get("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(content, source)
    if method == "modelopt":
        if content.get("quant_algo") is None:
            return None
        algorithm = str(content["quant_algo"]).upper()  # some releases wrote it in lower case
        if algorithm not in _ALGORITHMS:
            raise _refusal(source, f"quant_algo {content['quant_algo']!r}", _ALGORITHMS)
        return Quantization("modelopt", _ALGORITHMS[algorithm])
    if method == "fp8":
        block = content.get("weight_block_size")
        return Quantization("fp8", "tensor") if block is None else Quantization("fp8", "block", _block(block, source))
    raise _refusal(source, f"quant_method {method!r}", ("compressed-tensors", "modelopt", "fp8"))


def _compressed_tensors(content: Mapping[str, Any], source: str) -> Quantization | None:
    groups = _object(content, "config_groups", source)
    found = set()
    for name, group in groups.items():
        if isinstance(group, dict) and group.get("weights") is None:
            continue
        weights = _object(group, "weights", f"{source}: {name}")
        if (weights.get("num_bits"), weights.get("type")) != (8, "float") or not weights.get("symmetric", True):
            raise _refusal(source, f"{name} of {weights.get('num_bits')} bits {weights.get('type')}", ("8 bits float",))
        scales = weights.get("strategy")
        if scales not in ("tensor", "channel", "block"):
            raise _refusal(source, f"{name} with strategy {scales!r}", ("tensor", "channel", "block"))
        block = _block(weights.get("block_structure"), source) if scales == "block" else (BLOCK, BLOCK)
        found.add(Quantization("compressed-tensors", scales, block))
    if len(found) > 1:
        raise ValueError(f"{source}: config_groups has {len(found)} forms of weights; write one")
    return found.pop() if found else None


def _block(value: Any, source: str) -> tuple[int, int]:
    if isinstance(value, str):  # as compressed-tensors writes it in some releases: "128x128"
        value = [int(part) if part.isdecimal() else 0 for part in value.split("x")]
    if not isinstance(value, list) or len(value) != 2 or not all(type(size) is int and size > 0 for size in value):
        raise ValueError(f"{source}: a block of {value!r} has no meaning; write two numbers, [{BLOCK}, {BLOCK}]")
    return value[0], value[1]


def _object(content: Any, key: str, source: Path | str) -> Mapping[str, Any]:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {key} is {value!r}; write an object")
    return value


def _refusal(source: str, found: str, known: Sequence[str] | Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"{source}: weights are stored as {found}, and FP8 alone is read ({', '.join(known)}): save the checkpoint "
        "unquantised, or quantise it with `arctic quantize`"
    )


def quantization_config(stored: Quantization, kept: Sequence[str]) -> dict[str, Any]:
    """Return the `quantization_config` of config.json for weights stored so; `kept` are the modules that are not.

    Activations are said to be quantised as they come, which calibrates nothing; who serves the weights with wider
    activations is more exact.
    """
    if stored.layout == "modelopt":
        return {"quant_method": "modelopt", **_modelopt(stored), "ignore": list(kept)}
    if stored.layout == "fp8":
        block = {"weight_block_size": list(stored.block)} if stored.scales == "block" else {}
        same = {"fmt": "e4m3", "activation_scheme": "dynamic", "modules_to_not_convert": list(kept)}
        return {"quant_method": "fp8", **same, **block}
    weights: dict[str, Any] = {**_EIGHT_BITS, "strategy": stored.scales, "dynamic": False}
    inputs: dict[str, Any] = {**_EIGHT_BITS, "strategy": "token", "dynamic": True}
    if stored.scales == "block":
        weights["block_structure"] = list(stored.block)
        inputs |= {"strategy": "group", "group_size": stored.block[1]}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(kept),
        "kv_cache_scheme": None,
    }


def modelopt_file(stored: Quantization, kept: Sequence[str]) -> dict[str, Any]:
    """Return the content of `hf_quant_config.json`, ModelOpt's older and more widely read place for the same."""
    content = {**_modelopt(stored), "kv_cache_quant_algo": None, "exclude_modules": list(kept)}
    return {"producer": {"name": "arctic"}, "quantization": content}


def _modelopt(stored: Quantization) -> dict[str, Any]:
    return {"quant_algo": next(name for name, scales in _ALGORITHMS.items() if scales == stored.scales)}
