"""Checkpoints on disk: Hugging Face safetensors, read into a model and written from one, a tensor at a time.

Nothing here holds more than one tensor beside the model. Faults of a checkpoint are `CheckpointError`s of one sentence.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from arctic_model import fp8
from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json
from arctic_model.model import ArcticModel
from arctic_model.names import hf_names, llama_name, module_name, tensor_shapes

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DEFAULT_SHARD_BYTES = 5 * 10**9
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# What is written and not read: quantised weights, for engines that take them so.
_WRITTEN_NAMES = {**_DTYPE_NAMES, fp8.DTYPE: "F8_E4M3"}


class CheckpointError(ValueError):
    """A checkpoint that is not whole or not this model's."""


class Checkpoint:
    """A folder with `config.json` and safetensors, of an Arctic or a Llama; tensors go by an Arctic's names."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        raw = read_json(self.folder / CONFIG_FILE)
        self.config = ArcticConfig.from_dict(raw, str(self.folder / CONFIG_FILE))
        self._llama = raw.get("model_type") == "llama"
        self._tied = bool(raw.get("tie_word_embeddings"))
        self._open: dict[str, Any] = {}
        self._files = self._find_files()

    def _find_files(self) -> dict[str, str]:
        """Which file holds each tensor, by the name that the tensor has there."""
        if (self.folder / INDEX_FILE).exists():
            files = read_json(self.folder / INDEX_FILE).get("weight_map")
            if not isinstance(files, dict) or not files:
                raise CheckpointError(f"{self.folder / INDEX_FILE} has no weight_map: copy the checkpoint again")
            files = {str(name): str(file) for name, file in files.items()}
            if outside := [file for file in files.values() if Path(file).name != file]:
                raise CheckpointError(f"{self.folder / INDEX_FILE} names {outside[0]}: not a file of its folder")
            return files
        if not (self.folder / SINGLE_FILE).exists():
            raise CheckpointError(f"{self.folder} has neither {INDEX_FILE} nor {SINGLE_FILE}: it holds no weights")
        return dict.fromkeys(self._file(SINGLE_FILE).keys(), SINGLE_FILE)

    def stored_name(self, hf_name: str) -> str:
        """What this checkpoint calls the tensor."""
        name = llama_name(hf_name) if self._llama else hf_name
        if name == "lm_head.weight" and self._tied and name not in self._files:
            return "model.embed_tokens.weight"
        return name

    def check_names(self, wanted: Sequence[str], model: ArcticConfig) -> None:
        """Raise CheckpointError where a wanted tensor is missing, or one is there that `model` has no place for."""
        missing = [name for name in map(self.stored_name, wanted) if name not in self._files]
        if missing:
            raise CheckpointError(
                f"{self.folder} misses {_count(missing)} of the model: copy the checkpoint again, whole"
            )
        known = {self.stored_name(name) for name in tensor_shapes(model)}
        known.add("lm_head.weight")
        # Old Llama checkpoints hold the frequencies of rotary positions, which are computed.
        unexpected = [name for name in self._files if name not in known and not name.endswith("rotary_emb.inv_freq")]
        if unexpected:
            raise CheckpointError(
                f"{self.folder} has {_count(unexpected)} that the model has no place for: its config.json is not that "
                "of these weights"
            )

    def tensor(self, hf_name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor. CheckpointError where it is missing, of another shape, quantised, damaged, or not finite."""
        name = self.stored_name(hf_name)
        if name not in self._files:
            raise CheckpointError(f"{self.folder} has no tensor {name}: copy the checkpoint again, whole")
        file = self._files[name]
        handle = self._file(file)
        try:
            stored = handle.get_slice(name)
            found, dtype = tuple(stored.get_shape()), stored.get_dtype()
            if found != shape:
                raise CheckpointError(
                    f"{self.folder / file}: {name} has the shape {list(found)} where the model has {list(shape)}: "
                    "its config.json is not that of these weights"
                )
            if dtype not in _DTYPE_NAMES.values():  # quantised: the numbers mean nothing without their scales
                *others, last = _DTYPE_NAMES.values()
                raise CheckpointError(
                    f"{self.folder / file}: {name} is stored as {dtype}: save it unquantised, as {', '.join(others)} "
                    f"or {last}"
                )
            tensor = cast("Tensor", handle.get_tensor(name))
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / file}: {name} cannot be read ({error}): copy it again") from None
        if not _is_finite(tensor):
            raise CheckpointError(
                f"{self.folder / file}: {name} holds NaN or infinity: copy it again, or take an earlier "
                "checkpoint of its training"
            )
        return tensor

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                self._open[name] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise CheckpointError(f"{path} is in the index and not in the folder: copy it there") from None
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is damaged or was cut short ({error}): copy it again") from None
        return self._open[name]


def _is_finite(tensor: Tensor) -> bool:
    # A NaN is both the least and the greatest. torch.isfinite on the whole takes forty times as long.
    extremes = torch.stack(torch.aminmax(tensor))
    return bool(extremes.isfinite().all())


def _count(names: Sequence[str]) -> str:
    others = len(names) - 1
    return names[0] if not others else f"{names[0]} and {others} other tensor{'s' if others > 1 else ''}"


def load_weights(
    model: ArcticModel,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    first_expert: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Fill a model, or a slice of one, from a checkpoint folder; reads nothing that it does not need.

    Parameters keep their dtype; those on the meta device get their memory on `device`; those in FP8 are quantised as
    they are read. `first_expert` is the first of the experts that this rank holds. `progress` is called with the share
    of the parameters that are there, 0 to 1. Raises CheckpointError, and ValueError where config.json is at fault.
    """
    checkpoint = Checkpoint(folder)
    parameters = list(model.named_parameters())
    names = {name: hf_names(name, held_experts(parameter, first_expert)) for name, parameter in parameters}
    checkpoint.check_names([part for parts in names.values() for part in parts], model.config)
    loaded, total = 0, sum(parameter.numel() for _, parameter in parameters)
    with torch.no_grad():
        for name, parameter in parameters:
            target = materialize(model, name, device)
            parts = names[name]
            for index, part in enumerate(parts):
                stacked = parameter.dim() == 3
                tensor = checkpoint.tensor(part, tuple(parameter.shape[1:] if stacked else parameter.shape))
                _fill(model, name, target, index if stacked else ..., tensor)
                loaded += tensor.numel()
                progress(loaded / total)


def _fill(model: ArcticModel, name: str, target: Tensor, where: Any, tensor: Tensor) -> None:
    if target.dtype != fp8.DTYPE:
        target[where] = tensor.to(target.device, target.dtype)
        return
    values, scale = fp8.quantize(tensor.to(target.device))
    target[where] = values
    materialize(model, fp8.scale_name(name), target.device)[where] = scale


def held_experts(parameter: Tensor, first_expert: int = 0) -> range:
    """The global indices of the experts that a parameter holds; empty where it is not stacked."""
    return range(first_expert, first_expert + parameter.shape[0]) if parameter.dim() == 3 else range(0)


def materialize(model: nn.Module, name: str, device: torch.device | str) -> Tensor:
    """Give a parameter or buffer on the meta device memory on `device`, not filled; returns it either way."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = cast("Tensor", getattr(module, leaf))
    if tensor.is_meta:
        # Not empty_like, which imports torch's symbolic shapes for seconds.
        fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad) if is_parameter else fresh
        # Whoever shares out the model marks its parameters (DeepSpeed does): the marks must outlive the meta device.
        vars(fresh).update(vars(tensor))
        setattr(module, leaf, fresh)
        return fresh
    return tensor


class TensorEntry(NamedTuple):
    """One tensor of a checkpoint that is to be written: its Hugging Face name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def save_model(model: ArcticModel, folder: Path, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Write `config.json` and the weights of a whole model to a new folder, which appears whole or not at all.

    Raises FileExistsError where the folder exists, ValueError where the weights are in FP8 or not the whole model's.
    """
    parameters = dict(model.named_parameters())
    if any(parameter.dtype == fp8.DTYPE for parameter in parameters.values()):
        raise ValueError("weights in FP8 are made while loading and are not saved: save the model that was quantised")

    def fetch(name: str) -> Tensor:
        place, expert = module_name(name)
        parameter = parameters.get(place)
        if parameter is None or (expert is not None and expert >= len(parameter)):
            raise ValueError(f"there is no {name} here: this is not a whole model; gather it and use write_weights")
        return parameter if expert is None else parameter[expert]

    entries = [TensorEntry(name, shape, fetch(name).dtype) for name, shape in tensor_shapes(model.config).items()]
    dtype = str(fetch("lm_head.weight").dtype).removeprefix("torch.")
    with atomic_folder(folder) as temporary:
        write_config(temporary, model.config.replace(torch_dtype=dtype))
        write_weights(temporary, entries, fetch, max_shard_bytes=max_shard_bytes)


def write_config(folder: Path, config: ArcticConfig) -> None:
    """Write `config.json` into a folder that exists.

    Never as tied: the output matrix is a tensor of its own beside it, whatever the weights were started from.
    """
    text = json.dumps(config.replace(tie_word_embeddings=False).to_dict(), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def write_weights(
    folder: Path,
    entries: Sequence[TensorEntry],
    fetch: Callable[[str], Tensor],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write safetensors into a folder that exists: one file, or several of at most `max_shard_bytes` and their index.

    `fetch` is called once a tensor, in the order of `entries`; what it returned is not kept. A tensor larger than
    `max_shard_bytes` gets a file of its own.
    """
    shards = plan_shards(entries, max_shard_bytes)
    if len(shards) == 1:
        _write_shard(folder / SINGLE_FILE, shards[0], fetch)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard, fetch)
        weight_map |= dict.fromkeys((entry.name for entry in shard), file)
    index = {"metadata": {"total_size": sum(entry.nbytes for entry in entries)}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_shards(entries: Sequence[TensorEntry], max_shard_bytes: int) -> list[list[TensorEntry]]:
    """Fill shards in order, none over `max_shard_bytes` unless with a single tensor. Pure."""
    shards: list[list[TensorEntry]] = [[]]
    room = max_shard_bytes
    for entry in entries:
        if shards[-1] and entry.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(entry)
        room -= entry.nbytes
    return shards


def _write_shard(path: Path, entries: Sequence[TensorEntry], fetch: Callable[[str], Tensor]) -> None:
    # The library's writer wants all tensors of a file at once, and their bytes a second time; the format is a header
    # in JSON behind its length, then the data: https://github.com/huggingface/safetensors#format
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        offsets = [offset, offset + entry.nbytes]
        header[entry.name] = {"dtype": _WRITTEN_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        offset += entry.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in entries:
            tensor = fetch(entry.name).detach()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise ValueError(f"{entry.name} is {tensor.dtype} {list(tensor.shape)}, announced as {entry}")
            tensor.cpu().contiguous().view(torch.uint8).numpy().tofile(file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well, and goes when it does not.

    Raises FileExistsError where `folder` exists: what was written whole is never written over.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name a new folder, or remove this one")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _fsync(path)
        _fsync(temporary)
        temporary.rename(folder)
        _fsync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
