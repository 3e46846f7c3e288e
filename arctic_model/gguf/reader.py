"""A Llama in a GGUF file, as an Arctic whose layers are all dense; quantised tensors are widened, exactly, to fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.gguf.names import Array, is_rotated, llama_tensor, to_halves
from arctic_model.gguf.tokenizer import write_tokenizer
from arctic_model.names import tensor_shapes
from arctic_model.weights import is_finite

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufLlama:
    """A GGUF file of the architecture `llama`; raises ValueError of one sentence where it is not one, or not whole."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            reader = gguf.GGUFReader(self.path)
            self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{self.path} cannot be read as a GGUF file: {error}") from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.config = _config(self._metadata, self.vocab_size, str(self.path))
        self._check_names()

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        if "token_embd.weight" not in self._tensors:
            raise ValueError(f"{self.path} has no tensor token_embd.weight: copy it again, whole")
        return int(self._tensors["token_embd.weight"].shape[-1])

    def dtype(self, hf_name: str) -> torch.dtype:
        """The narrowest type that holds a tensor exactly: its own, or fp32 where it is quantised."""
        return _PLAIN.get(self._stored(hf_name).tensor_type.name, torch.float32)

    def _stored(self, hf_name: str) -> gguf.ReaderTensor:
        name = llama_tensor(hf_name)
        tied = name == "output.weight" and name not in self._tensors
        return self._tensors["token_embd.weight" if tied else name]

    def _check_names(self) -> None:
        known = {llama_tensor(name) for name in tensor_shapes(self.config)}
        missing = sorted(known - set(self._tensors) - {"output.weight"})
        if missing:
            raise ValueError(f"{self.path} has no tensor {missing[0]}: copy it again, whole")
        if unexpected := sorted(set(self._tensors) - known):
            raise ValueError(
                f"{self.path} has {unexpected[0]}, which a layer of an Arctic has no place for (no biases, no scaled "
                "frequencies): this model cannot be imported"
            )

    def tensor(self, hf_name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor in fp32, by its name in an Arctic. Raises ValueError where it has another shape."""
        stored = self._stored(hf_name)
        name = stored.name
        found = tuple(int(size) for size in reversed(stored.shape))
        if found != shape:
            raise ValueError(f"{self.path}: {name} has the shape {list(found)} where the model has {list(shape)}")
        try:
            with np.errstate(invalid="ignore"):  # what is no number is named below
                values: Array = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(shape)
        except NotImplementedError:
            kind = stored.tensor_type.name
            raise ValueError(
                f"{self.path}: {name} is {kind}, which is not read here; take a Q8_0 or F16 file"
            ) from None
        if is_rotated(hf_name):
            values = to_halves(values, self.config.head_dim)
        tensor = torch.from_numpy(np.array(values, dtype=np.float32))
        if not is_finite(tensor):
            raise ValueError(f"{self.path}: {name} holds NaN or infinity: copy it again")
        return tensor

    def write_tokenizer(self, folder: Path) -> None:
        """Write its tokenizer and chat template into a folder that exists, in Hugging Face's files."""
        write_tokenizer(self._metadata, folder, str(self.path))


def _config(metadata: dict[str, Any], vocab_size: int, source: str) -> ArcticConfig:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{source}: its architecture is {architecture!r}; a Llama's alone can become an Arctic")
    if metadata.get("split.count", 1) not in (0, 1):
        raise ValueError(f"{source} is one of several files: put them together with llama-gguf-split --merge")
    own = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    if own.get("expert_count"):
        raise ValueError(f"{source} has {own['expert_count']} experts a layer: a Llama without experts can be imported")
    try:
        heads, hidden = own["attention.head_count"], own["embedding_length"]
        llama = {
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": own["feed_forward_length"],
            "num_hidden_layers": own["block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": own.get("attention.head_count_kv", heads),
            "head_dim": own.get("attention.key_length", own.get("rope.dimension_count")),
            "vocab_size": vocab_size,
            "max_position_embeddings": own["context_length"],
            # Its fp32 as the decimal that was meant.
            "rms_norm_eps": float(f"{own['attention.layer_norm_rms_epsilon']:.7g}"),
            "rope_theta": float(own.get("rope.freq_base", 10000.0)),
            "rope_scaling": _rope_scaling(own),
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        }
    except KeyError as error:
        raise ValueError(f"{source} does not say llama.{error.args[0]}: convert the model again") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} has no number where llama.cpp has one ({error}): convert the model again") from None
    return ArcticConfig.from_dict(llama, source)


_YARN = {
    "original_max_position_embeddings": "original_context_length",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
"""What llama.cpp's converter calls the keys of a scaling."""


def _rope_scaling(own: dict[str, Any]) -> dict[str, Any] | None:
    # As llama.cpp reads them: without a type it is linear, and the factor had another name once.
    kind = own.get("rope.scaling.type", "linear")
    factor = float(own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0))) or 1.0
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    said = {ours: own.get(f"rope.scaling.{theirs}") for ours, theirs in _YARN.items()}
    return {"rope_type": kind, "factor": factor, **{key: value for key, value in said.items() if value}}
