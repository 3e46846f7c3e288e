"""What a checkpoint folder holds for TensorRT-LLM, and the folder that it is given instead. No TensorRT-LLM here.

TensorRT-LLM takes the format of the weights from the checkpoint alone: from `hf_quant_config.json` (ModelOpt's, one
scale a tensor), or from `quantization_config` in `config.json` (one scale a block of 128 x 128). It quantises nothing
while it loads. What a manifest changes about the model (window, positions) has no argument that both neighbours of
release 1.2.1 have, so a rank reads it from a `config.json` written for the group, beside links to everything else.

Source: `tensorrt_llm/_torch/model_config.py` (`load_modelopt_quant_config`, `load_hf_quant_config`),
`tensorrt_llm/llmapi/llm_utils.py` (`_update_from_hf_quant_config`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arctic_api.inference import Attention
from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json
from arctic_model.quantization import parse_quantization
from arctic_workers.inference.engine import Refused

ARCHITECTURE = "ArcticForCausalLM"
QUANTIZATION_FILE = "hf_quant_config.json"
BLOCK = 128
"""Rows and columns that share a scale where weights are FP8 by blocks; the only size that TensorRT-LLM takes."""

Format = Literal["plain", "fp8-tensor", "fp8-block"]

_MLP = r"(.*\.layers\.\d+\.(?:residual_mlp|block_sparse_moe\.mlp))"
RENAMED: Mapping[str, str] = {
    rf"{_MLP}\.w1\.(.*)": r"\1.gate_proj.\2",
    rf"{_MLP}\.w3\.(.*)": r"\1.up_proj.\2",
    rf"{_MLP}\.w2\.(.*)": r"\1.down_proj.\2",
    # A Llama's layers, which are an Arctic's without experts.
    r"(.*\.layers\.\d+)\.mlp\.(.*)": r"\1.block_sparse_moe.mlp.\2",
}
"""Names of tensors: from what a checkpoint calls them to what the modules ask for, as patterns and replacements."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint folder, as far as it concerns this engine."""

    folder: Path
    config: ArcticConfig
    weights: Format
    kv_cache: str | None = None
    """The format of keys and values that the checkpoint asks for, in ModelOpt's words; None where it says nothing."""
    quantization: Mapping[str, Any] | None = None
    """`quantization_config` of its `config.json`."""


def read_stored(folder: Path) -> Stored:
    """Read what a folder holds. Raises Refused where TensorRT-LLM could not load it as an Arctic."""
    try:
        raw = read_json(folder / CONFIG_FILE)
        quantization = raw.pop("quantization_config", None)
        config = ArcticConfig.from_dict(raw, str(folder / CONFIG_FILE))
        modelopt = read_json(folder / QUANTIZATION_FILE) if (folder / QUANTIZATION_FILE).exists() else None
    except ValueError as error:
        raise Refused(str(error)) from None
    if modelopt is not None:
        weights, kv_cache = _modelopt(modelopt.get("quantization"), folder / QUANTIZATION_FILE)
        if weights != "plain":
            return Stored(folder, config, weights, kv_cache)
    if quantization is None or _is_of_the_cache(quantization):
        return Stored(folder, config, "plain")
    block = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if block != [BLOCK, BLOCK] or quantization.get("quant_method") != "fp8":
        raise Refused(
            f"{folder / CONFIG_FILE}: of quantization_config TensorRT-LLM takes quant_method fp8 with "
            f"weight_block_size [{BLOCK}, {BLOCK}] alone; quantise the published one so: {how_to_quantise('FOLDER')}"
        )
    return Stored(folder, config, "fp8-block", None, quantization)


def _is_of_the_cache(quantization: Any) -> bool:
    """Whether a `quantization_config` is about keys and values alone."""
    try:
        return parse_quantization(quantization, CONFIG_FILE) is None
    except ValueError:  # of weights, in a form that is looked at next
        return False


def _modelopt(content: Any, path: Path) -> tuple[Format, str | None]:
    algorithm = content.get("quant_algo") if isinstance(content, dict) else None
    if algorithm is None and isinstance(content, dict):  # it is about keys and values alone
        return "plain", None
    formats: dict[Any, Format] = {"FP8": "fp8-tensor", "fp8_pb_wo": "fp8-block", "FP8_BLOCK_SCALES": "fp8-block"}
    if algorithm not in formats:
        raise Refused(f"{path}: quantization.quant_algo is {algorithm!r}; write FP8 or FP8_BLOCK_SCALES weights")
    kv_cache = content.get("kv_cache_quant_algo")
    if kv_cache not in (None, "FP8"):
        raise Refused(f"{path}: quantization.kv_cache_quant_algo is {kv_cache!r}; only FP8 is carried out here")
    return formats[algorithm], kv_cache


def how_to_quantise(folder: Path | str) -> str:
    """The command that makes FP8 weights by blocks of what is published."""
    return f"arctic quantize {folder} NEW_FOLDER --layout fp8 --scales block"


def longest(attention: Attention, config: ArcticConfig) -> int:
    """Most tokens of a request. Raises Refused where the model does not reach as far as was asked for."""
    if attention.max_length == "unlimited":
        raise Refused("attention.maxLength is unlimited, and TensorRT-LLM ends at a length; write a number of tokens")
    factor = attention.rope_scaling.factor if attention.rope_scaling else 1.0
    asked, reach = int(attention.max_length), int(config.max_position_embeddings * factor)
    # A manifest comes with the default filled in, so nobody can tell whether it was written: it gives way.
    if asked > reach and asked != Attention().max_length:
        raise Refused(
            f"attention.maxLength is {asked} and the model reaches {reach} positions; write at most that, or stretch "
            "them by attention.ropeScaling"
        )
    return min(asked, reach)


def served_config(stored: Stored, attention: Attention) -> dict[str, Any]:
    """`config.json` as the ranks are to read it: the checkpoint's, with what the manifest says of attention.

    Pure. Raises Refused where TensorRT-LLM can't do what is asked for.
    """
    if attention.sinks:
        raise Refused(
            "attention.sinks: TensorRT-LLM's PyTorch backend keeps the first tokens' room and attends over the window "
            "alone: it would answer, and wrongly; leave sinks out or write engine.name: native"
        )
    config, length = stored.config, longest(attention, stored.config)
    window = attention.window or config.sliding_window
    content: dict[str, Any] = {
        **config.to_dict(),
        "architectures": [ARCHITECTURE],
        "model_type": "arctic",
        "head_dim": config.head_dim,
        "torch_dtype": "bfloat16",
        "sliding_window": window if window is not None and window < length else None,
        "rope_scaling": _rope_scaling(config, attention),
        # Its table of rotary positions is this long, and it refuses a length beyond.
        "max_position_embeddings": max(config.max_position_embeddings, length),
    }
    for key in ("rope_parameters", "auto_map"):  # the newer form of the same, and code that came with the checkpoint
        content.pop(key, None)
    if stored.quantization is not None:
        content["quantization_config"] = dict(stored.quantization)
    return content


def _rope_scaling(config: ArcticConfig, attention: Attention) -> dict[str, Any] | None:
    asked, stored = attention.rope_scaling, config.rope
    if asked is not None and stored is not None:
        raise Refused("attention.ropeScaling: the model's positions are stretched already; leave it out")
    kind, factor = (asked.type, asked.factor) if asked else (stored.type, stored.factor) if stored else (None, 1.0)
    if kind is None:
        return None
    if kind == "dynamic":
        raise Refused(
            "attention.ropeScaling: TensorRT-LLM turns positions by angles fixed at its start, so nothing is dynamic; "
            "write type: yarn or type: linear"
        )
    scaling = {
        "rope_type": kind,
        "type": kind,
        "factor": factor,
        # Never left out: TensorRT-LLM would take 1024.
        "original_max_position_embeddings": config.max_position_embeddings,
    }
    if stored is None:
        return scaling
    if kind == "yarn" and stored.attention_factor is not None:
        raise Refused(f"rope_scaling.attention_factor ({stored.attention_factor}) is ignored by TensorRT-LLM")
    if kind == "yarn" and not stored.truncate:
        raise Refused("rope_scaling.truncate is false, which TensorRT-LLM ignores")
    original = stored.original_max_position_embeddings or config.max_position_embeddings
    scaling |= {"original_max_position_embeddings": original, "beta_fast": stored.beta_fast}
    scaling["beta_slow"] = stored.beta_slow
    if stored.mscale and stored.mscale_all_dim:  # one alone says nothing, and TensorRT-LLM would take it
        scaling |= {"mscale": stored.mscale, "mscale_all_dim": stored.mscale_all_dim}
    return scaling


def prepare_folder(stored: Stored, target: Path, config: Mapping[str, Any]) -> None:
    """Make `target`: links to a checkpoint's files, and `config` as its `config.json`. Each pod of a group does."""
    target.mkdir(parents=True)
    # A file that says nothing of weights is left out: TensorRT-LLM refuses it.
    says_weights = stored.weights != "plain" and stored.quantization is None
    written = (CONFIG_FILE,) if says_weights else (CONFIG_FILE, QUANTIZATION_FILE)
    for file in stored.folder.iterdir():
        if file.name not in written:
            (target / file.name).symlink_to(file.resolve())
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
