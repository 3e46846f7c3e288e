"""Make FP8 weights by blocks of a published checkpoint: `python3 -m ...tensorrt_llm.quantize FOLDER NEW_FOLDER`.

e4m3 values with an fp32 scale a block of 128 x 128, in the layout in which DeepSeek-V3 published its weights (beside
each `weight` a `weight_scale_inv`, and `quantization_config` in `config.json`): TensorRT-LLM reads that and quantises
activations while it runs, so that nothing has to be calibrated. A tensor at a time, on the CPU. Embedding, output
matrix, norms and gates stay as they are.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from arctic_model import fp8
from arctic_model.config import CONFIG_FILE
from arctic_model.names import tensor_shapes
from arctic_model.weights import DEFAULT_SHARD_BYTES, Checkpoint, TensorEntry, atomic_folder, write_weights
from arctic_workers.inference.engines.tensorrt_llm.checkpoint import BLOCK

KEPT = ("model.embed_tokens.weight", "lm_head.weight", "block_sparse_moe.gate.weight", "norm.weight")
"""Ends of the names of tensors that are not quantised."""
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
    "modules_to_not_convert": ["lm_head", "model.embed_tokens", "*block_sparse_moe.gate"],
}


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round [out, in] to e4m3 values and fp32 scales [ceil(out / 128), ceil(in / 128)]: `weight ~ values * scale`.

    The greatest magnitude of a block becomes 448, the greatest e4m3 value; a block of zeros has scale 1.
    """
    rows, columns = weight.shape
    padded = functional.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    scale = blocks.abs().amax((1, 3)) / fp8.MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = (blocks / scale[:, None, :, None]).clamp(-fp8.MAX, fp8.MAX).flatten(2).flatten(0, 1)
    return values[:rows, :columns].to(fp8.DTYPE).contiguous(), scale


def quantize_checkpoint(source: Path, target: Path, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Write `target` from an unquantised `source`; it appears whole or not at all.

    Raises FileExistsError where `target` exists, CheckpointError or ValueError where `source` is at fault.
    """
    checkpoint = Checkpoint(source)
    shapes = tensor_shapes(checkpoint.config)
    checkpoint.check_names(list(shapes), checkpoint.config)
    config = {**checkpoint.config.to_dict(), "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    with atomic_folder(target) as temporary:
        for file in source.iterdir():
            if file.is_file() and ".safetensors" not in file.name and file.name != CONFIG_FILE:
                shutil.copyfile(file, temporary / file.name)
        text = json.dumps({**config, "quantization_config": QUANTIZATION}, indent=2, sort_keys=True) + "\n"
        (temporary / CONFIG_FILE).write_text(text, encoding="utf-8")
        write_weights(temporary, _entries(shapes), _fetch(checkpoint, shapes), max_shard_bytes=max_shard_bytes)


def _entries(shapes: dict[str, tuple[int, ...]]) -> list[TensorEntry]:
    entries = []
    for name, shape in shapes.items():
        if name.endswith(KEPT):
            entries.append(TensorEntry(name, shape, torch.bfloat16))
            continue
        blocks = tuple(-(-size // BLOCK) for size in shape)
        entries += [TensorEntry(name, shape, fp8.DTYPE), TensorEntry(f"{name}_scale_inv", blocks, torch.float32)]
    return entries


def _fetch(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> Callable[[str], Tensor]:
    """What `write_weights` asks for, in the order of the entries: a scale comes right after its values."""
    scales: dict[str, Tensor] = {}

    def fetch(name: str) -> Tensor:
        if name in scales:
            return scales.pop(name)
        tensor = checkpoint.tensor(name, shapes[name])
        if name.endswith(KEPT):
            return tensor.to(torch.bfloat16)
        values, scales[f"{name}_scale_inv"] = quantize_blocks(tensor)
        return values

    return fetch


def main(arguments: list[str] | None = None) -> int:
    """Run from a command line; a fault of the checkpoint is a sentence and exit code 64."""
    parser = argparse.ArgumentParser(prog="quantize", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="unquantised checkpoint in the Hugging Face layout")
    parser.add_argument("new_folder", type=Path, help="folder to make")
    chosen = parser.parse_args(arguments)
    try:
        quantize_checkpoint(chosen.folder, chosen.new_folder)
    except (ValueError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 64
    return 0


if __name__ == "__main__":
    sys.exit(main())
