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
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from arctic_model import fp8
from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json
from arctic_model.model import ArcticModel
from arctic_model.names import hf_names, llama_name, module_name, tensor_shapes
from arctic_model.parallel import WHOLE, Cut, TensorSlice
from arctic_model.quantization import KEY as QUANTIZATION
from arctic_model.quantization import Quantization, read_quantization
from arctic_model.tensor_files import DTYPE_NAMES, SafetensorError, StoredTensor, TensorFile

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DEFAULT_SHARD_BYTES = 5 * 10**9
_PIECE_BYTES = 1 << 20
"""How much of a tensor is read at once."""
_PLAIN = {name: dtype for dtype, name in DTYPE_NAMES.items() if dtype != fp8.DTYPE}
_ACTIVATION_SCALES = tuple(f".{name}_scale" for name in ("input", "output", "activation", "q", "k", "v", "kv"))
"""Ends of the names of what only concerns activations in FP8, which nothing here computes with."""


class CheckpointError(ValueError):
    """A checkpoint that is not whole or not this model's."""


class Piece(NamedTuple):
    """Some rows of a stored tensor: e4m3 values with their fp32 scales, or values as they are and None."""

    rows: slice
    values: Tensor
    scale: Tensor | None
    """[rows, 1], or [rows, blocks] where blocks of inputs have scales."""
    block: fp8.Block | None

    def wide(self) -> Tensor:
        """The numbers: in fp32 where they were quantised, else in their own type."""
        if self.scale is None:
            return self.values
        if self.block is None:
            return self.values.float() * self.scale
        return fp8.dequantize(self.values, self.scale, (1, self.block[1]))


class Weights(Protocol):
    """Where a model's weights come from, by an Arctic's names: a checkpoint, or what is made of one as it is read."""

    def check_names(self, wanted: Sequence[str], model: ArcticConfig) -> None:
        """Raise CheckpointError where a wanted tensor is missing, or one is there that `model` has no place for."""
        ...

    def pieces(self, hf_name: str, shape: tuple[int, ...], rows: range | None = None) -> Iterator[Piece]:
        """Read a tensor, or those rows of it, some at a time; what was returned is not kept. May raise CheckpointError.

        `shape` is the whole tensor's.
        """
        ...


class Checkpoint:
    """A folder with `config.json` and safetensors, of an Arctic or a Llama; tensors go by an Arctic's names.

    Its weights may be in FP8 (`quantization` says how). Raises CheckpointError, and ValueError where a file beside the
    tensors is at fault.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        raw = read_json(self.folder / CONFIG_FILE)
        self.quantization = read_quantization(self.folder)
        raw.pop(QUANTIZATION, None)
        self.config = ArcticConfig.from_dict(raw, str(self.folder / CONFIG_FILE))
        self._llama = raw.get("model_type") == "llama"
        self._tied = bool(raw.get("tie_word_embeddings"))
        self._open: dict[str, TensorFile] = {}
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
        return dict.fromkeys(self._file(SINGLE_FILE).tensors, SINGLE_FILE)

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
        if self.quantization is not None:
            known |= {scale for name in known for scale in self.quantization.scale_names(name)}
        # Old Llama checkpoints hold the frequencies of rotary positions, which are computed.
        ignored = ("rotary_emb.inv_freq", *_ACTIVATION_SCALES)
        unexpected = [name for name in self._files if name not in known and not name.endswith(ignored)]
        if unexpected:
            raise CheckpointError(
                f"{self.folder} has {_count(unexpected)} that the model has no place for: its config.json is not that "
                "of these weights"
            )

    def dtype(self, hf_name: str) -> torch.dtype:
        """The type in which a tensor is stored. CheckpointError where it is missing or of a type that is not read."""
        file, name, stored = self._stored(hf_name)
        if stored.dtype in _PLAIN:
            return _PLAIN[stored.dtype]
        if stored.dtype == DTYPE_NAMES[fp8.DTYPE] and self.quantization is not None:
            return fp8.DTYPE
        *others, last = _PLAIN  # the numbers mean nothing without their scales
        raise CheckpointError(
            f"{self.folder / file}: {name} is stored as {stored.dtype}: save it unquantised, as {', '.join(others)} "
            f"or {last}"
        )

    def tensor(self, hf_name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor, in fp32 where it is stored in FP8. Raises as `pieces` does."""
        dtype = self.dtype(hf_name)
        whole = torch.empty(shape, dtype=torch.float32 if dtype == fp8.DTYPE else dtype)
        for piece in self.pieces(hf_name, shape):
            whole[piece.rows] = piece.wide()
        return whole

    def pieces(self, hf_name: str, shape: tuple[int, ...], rows: range | None = None) -> Iterator[Piece]:
        """Read one tensor, or those rows of it, some at a time; what was returned is not kept.

        `shape` is the whole tensor's. CheckpointError where it is missing, of another shape, of a type that is not
        read, damaged, or not finite.
        """
        dtype = self.dtype(hf_name)
        file, name, stored = self._stored(hf_name)
        if stored.shape != shape:
            raise CheckpointError(
                f"{self.folder / file}: {name} has the shape {list(stored.shape)} where the model has {list(shape)}: "
                "its config.json is not that of these weights"
            )
        scale = self._scale(name, shape) if dtype == fp8.DTYPE else None
        count = max(1, _PIECE_BYTES // max(1, dtype.itemsize * torch.Size(shape[1:]).numel()))
        wanted = range(shape[0]) if rows is None else rows
        for first in wanted[::count]:
            read = slice(first, min(first + count, wanted.stop))
            values = self._read(file, name, read)
            if not is_finite(values):
                raise CheckpointError(
                    f"{self.folder / file}: {name} holds NaN or infinity: copy it again, or take an earlier "
                    "checkpoint of its training"
                )
            yield Piece(read, values, *((None, None) if scale is None else (scale.rows(read), scale.block)))

    def _scale(self, name: str, shape: tuple[int, ...]) -> _Scale:
        """The scales of a weight that is stored in FP8."""
        assert self.quantization is not None
        names = self.quantization.scale_names(name)
        scale_name = next((known for known in names if known in self._files), None)
        if scale_name is None:
            raise CheckpointError(f"{self.folder} has {name} in FP8 and no {names[0]}: copy the checkpoint again")
        file = self._files[scale_name]
        stored = self._file(file).tensors.get(scale_name)
        wanted = self.quantization.scale_shape((shape[0], shape[1])) if len(shape) == 2 else ()
        if (
            stored is None
            or stored.dtype not in _PLAIN
            or torch.Size(stored.shape).numel() != torch.Size(wanted).numel()
        ):
            raise CheckpointError(
                f"{self.folder / file}: {scale_name} is not {list(wanted)} in floating point, as "
                f"{self.quantization.describe()} has it"
            )
        values = self._read(file, scale_name).float()
        if not is_finite(values):
            raise CheckpointError(f"{self.folder / file}: {scale_name} holds NaN or infinity: copy it again")
        return _Scale(values, self.quantization, shape)

    def _stored(self, hf_name: str) -> tuple[str, str, StoredTensor]:
        name = self.stored_name(hf_name)
        if name not in self._files:
            raise CheckpointError(f"{self.folder} has no tensor {name}: copy the checkpoint again, whole")
        file = self._files[name]
        stored = self._file(file).tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{self.folder / file}: {name} cannot be read (it is not there): copy it again")
        return file, name, stored

    def _read(self, file: str, name: str, rows: slice = slice(None)) -> Tensor:
        try:
            return self._file(file).read(name, rows)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / file}: {name} cannot be read ({error}): copy it again") from None

    def _file(self, name: str) -> TensorFile:
        if name not in self._open:
            path = self.folder / name
            try:
                self._open[name] = TensorFile(path)
            except FileNotFoundError:
                raise CheckpointError(f"{path} is in the index and not in the folder: copy it there") from None
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is damaged or was cut short ({error}): copy it again") from None
        return self._open[name]


class _Scale:
    """The scales of one weight, by its rows."""

    def __init__(self, values: Tensor, stored: Quantization, shape: tuple[int, ...]) -> None:
        self.block = stored.scale_block
        if self.block is None:
            self._values = values.reshape(-1, 1).expand(shape[0], 1)
        else:
            self._values = values.reshape(fp8.scale_shape(shape, self.block))

    def rows(self, rows: slice) -> Tensor:
        return self._values[rows] if self.block is None else self._values[_blocks_of(rows, self.block)]


def _blocks_of(rows: slice, block: fp8.Block) -> Tensor:
    """In which block each row is."""
    return torch.arange(rows.start, rows.stop) // block[0]


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if tensor.dtype == fp8.DTYPE:  # it has no infinity, and few operations
        return not bool((tensor.view(torch.uint8) & 0x7F == 0x7F).any())
    # A NaN is both the least and the greatest. torch.isfinite on the whole takes forty times as long.
    extremes = torch.stack(torch.aminmax(tensor))
    return bool(extremes.isfinite().all())


def _count(names: Sequence[str]) -> str:
    others = len(names) - 1
    return names[0] if not others else f"{names[0]} and {others} other tensor{'s' if others > 1 else ''}"


def load_weights(
    model: ArcticModel,
    source: Path | Weights,
    *,
    device: torch.device | str = "cpu",
    first_expert: int = 0,
    share: TensorSlice = WHOLE,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Fill a model, or a slice of one, from a checkpoint's folder or other weights; reads nothing that it doesn't need.

    Parameters keep their dtype; those on the meta device get their memory on `device`; those in FP8 are quantised as
    they are read, or take what is stored in FP8 as it is. `first_expert` is the first of the experts that this rank
    holds; `share` is what `take_share` has made the model for. Columns of a matrix are no run of bytes: of one that is
    cut by them whole rows are read, a piece at a time, and no more than the columns is kept. `progress` is called with
    the share of the parameters that are there, 0 to 1. Raises CheckpointError, and ValueError where config.json is at
    fault.
    """
    weights = Checkpoint(source) if isinstance(source, Path) else source
    parameters = list(model.named_parameters())
    shapes = tensor_shapes(model.config)
    first_expert += share.experts(model.config.num_local_experts).start
    names = {name: hf_names(name, held_experts(parameter, first_expert)) for name, parameter in parameters}
    weights.check_names([part for parts in names.values() for part in parts], model.config)
    loaded, total = 0, sum(parameter.numel() for _, parameter in parameters)
    # All memory first: between what stays, what is freed while reading would leave holes in the heap.
    targets = [(name, *_memory_of(model, name, device)) for name, _ in parameters]
    with torch.no_grad():
        for name, target, scale, block in targets:
            for index, part in enumerate(names[name]):
                where: Any = index if target.dim() == 3 else ...
                into, scale_into = target[where], None if scale is None else scale[where]
                cut = share.cut(part, shapes[part])
                for piece in weights.pieces(part, shapes[part], cut.rows):
                    loaded += _fill(into, scale_into, block, piece, cut, part)
                    progress(loaded / total)


def _memory_of(
    model: ArcticModel, name: str, device: torch.device | str
) -> tuple[Tensor, Tensor | None, fp8.Block | None]:
    """A parameter's memory, and where it is in FP8 that of its scales, and the blocks that have them."""
    target = materialize(model, name, device)
    if target.dtype != fp8.DTYPE:
        return target, None, None
    block = cast("fp8.Block | None", model.get_submodule(name.rpartition(".")[0]).block)
    return target, materialize(model, fp8.scale_name(name), device), block


def _fill(target: Tensor, scale: Tensor | None, block: fp8.Block | None, piece: Piece, cut: Cut, name: str) -> int:
    """Put what is wanted of a piece into a parameter's memory, and that of its scales; return how many numbers."""
    rows = slice(piece.rows.start - cut.rows.start, piece.rows.stop - cut.rows.start)
    columns = ... if cut.columns is None else (..., slice(cut.columns.start, cut.columns.stop))
    device = target.device
    if scale is None:
        target[rows] = piece.wide()[columns].to(device, target.dtype)
    elif piece.block != block:
        raise CheckpointError(
            f"{name} has scales of other blocks than the model is made for: take_fp8_form makes it so"
        )
    elif piece.scale is None:
        # The scale of a channel is that of its whole row, whatever of it is here.
        values, scale[rows] = fp8.quantize(piece.values.to(device))
        target[rows] = values[columns]
    else:
        target[rows] = piece.values[columns].to(device)
        if block is None:
            scale[rows] = piece.scale[:, 0].to(device)
        else:
            blocks = _blocks_of(rows, block).to(device)
            scale[blocks] = piece.scale[:, _scales_of(cut, block)].to(device)
    return target[rows].numel()


def _scales_of(cut: Cut, block: fp8.Block) -> slice:
    """Which scales of a row of blocks are those of some columns."""
    assert cut.columns is not None
    return slice(cut.columns.start // block[1], -(-cut.columns.stop // block[1]))


def take_fp8_form(model: ArcticModel, folder: Path, first_expert: int = 0) -> None:
    """Give a model on the meta device the form in which a checkpoint is served with FP8 weights.

    Of an unquantised one all that multiplies is quantised as it is loaded, gates excepted. Of one in FP8 no number is
    changed: what it has in FP8 is FP8, its other matrices in bf16 stay so. Raises CheckpointError, also where experts
    of a layer are stored unlike.
    """
    checkpoint = Checkpoint(folder)
    if checkpoint.quantization is None:
        fp8.quantize_model(model)
        return

    def stored(name: str, weight: Tensor) -> torch.dtype:
        found = {checkpoint.dtype(part) for part in hf_names(name, held_experts(weight, first_expert))}
        if len(found) > 1 and fp8.DTYPE in found:
            raise CheckpointError(f"{folder}: some experts of {name} are in FP8 and others are not: store them alike")
        return found.pop() if len(found) == 1 else torch.float32

    forms = {name: stored(name, weight) for name, weight in model.named_parameters()}
    fp8.quantize_model(model, lambda name: forms[name] == fp8.DTYPE, checkpoint.quantization.scale_block)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and forms[name] == torch.bfloat16:
            weight.data = weight.data.to(torch.bfloat16)


def take_share(model: ArcticModel, share: TensorSlice) -> None:
    """Give a model on the meta device the shapes of what a tensor rank has of it; its modules compute no more.

    If it is to have FP8 weights, it has `take_fp8_form` behind it. ValueError where the edge of a slice is within a
    block that has one scale.
    """
    for name, parameter in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        cut = share.cut(hf_names(name, held_experts(parameter))[0], tuple(parameter.shape[-2:]))
        held = () if parameter.dim() < 3 else (len(share.experts(len(parameter))),)
        shape = (*held, *cut.shape)
        setattr(module, leaf, nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta"), False))
        if parameter.dtype == fp8.DTYPE:
            block = cast("fp8.Block | None", module.block)
            _check_blocks(name, cut, tuple(parameter.shape[-2:]), block, share)
            scales = torch.empty(fp8.scale_shape(shape, block), dtype=torch.float32, device="meta")
            setattr(module, fp8.scale_name(leaf), scales)


def _check_blocks(name: str, cut: Cut, shape: tuple[int, ...], block: fp8.Block | None, share: TensorSlice) -> None:
    for part, whole, size in zip(cut, shape, block or (1, 1), strict=True):
        if part is not None and any(edge % size and edge != whole for edge in (part.start, part.stop)):
            raise ValueError(
                f"parallelism.tensor is {share.ranks}: of {name} every rank would have {len(part)} of {whole}, and "
                f"{size} share a scale in FP8; write a smaller tensor, engine.options.enable_expert_parallel where it "
                "is an expert's, or quantise the model with scales of channels (`arctic quantize`)"
            )


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
        header[entry.name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        offset += entry.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in entries:
            tensor = fetch(entry.name).detach()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise ValueError(f"{entry.name} is {tensor.dtype} {list(tensor.shape)}, announced as {entry}")
            tensor.cpu().reshape(-1).view(torch.uint8).numpy().tofile(file)
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
    temporary = _temporary_name(folder)
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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """The name of a file beside `path`, which takes its place when the block ends well, and goes when it does not.

    Raises FileExistsError where `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: name a new file, or remove this one")
    temporary = _temporary_name(path)
    try:
        yield temporary
        _fsync(temporary)
        temporary.rename(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    """With the machine's name: others may write there too, and in containers processes have the same few numbers."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
