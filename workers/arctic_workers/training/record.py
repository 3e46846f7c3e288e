"""What made a run: kept by every attempt in the run's folder, so that it can be told later what differs. No torch.

The same tokens, code, libraries, kind of processor, threads and world give the same weights, bit for bit.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import arctic_api
import arctic_model
import arctic_workers
from arctic_api.world import TrainingWorld
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.data.prepare import TOKENIZER_FOLDER
from arctic_workers.training.data.streams import DATA_FOLDER, INDEX, is_whole
from arctic_workers.training.files import sha256, write_json
from arctic_workers.training.progress import now

RECORDS = "attempts"
FILE = "run.json"
FORMAT = 1
LIBRARIES = ("torch", "deepspeed", "numpy", "safetensors", "tokenizers", "pyarrow", "zstandard")
_VECTORS = re.compile(r"avx\w*|amx\w*|sse4\w*|fma|asimd\w*|sve\w*")


def write_record(world: TrainingWorld, store: CheckpointStore, machines: Iterable[Mapping[str, Any]]) -> None:
    """Keep what makes this attempt, under its epoch; `machines` are those of its ranks."""
    folder = store.run_folder / RECORDS / f"{world.epoch:010d}"
    folder.mkdir(parents=True, exist_ok=True)
    different = {json.dumps(machine, sort_keys=True): machine for machine in machines}
    record = {
        "format": FORMAT,
        "time": now(),
        "attempt": world.attempt,
        "epoch": world.epoch,
        "manifest": world.spec.wire(),
        "machines": [different[key] for key in sorted(different)],
        **surroundings(),
        **contents(store.run_folder),
    }
    write_json(folder / FILE, record)


def newest_record(run_folder: Path) -> dict[str, Any]:
    """Return what the newest attempt has kept; ValueError if there is nothing, or nothing that can be read."""
    records = sorted(run_folder.glob(f"{RECORDS}/[0-9]*/{FILE}"))
    if not records:
        raise ValueError(f"{run_folder} has no {RECORDS}/*/{FILE}: name the folder of a run, which holds checkpoints/")
    try:
        record: dict[str, Any] = json.loads(records[-1].read_bytes())
        known = record["format"] == FORMAT
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{records[-1]} is damaged: {error}") from error
    if not known:
        raise ValueError(
            f"{records[-1]} has format {record['format']}, and this version reads {FORMAT}: use a newer one"
        )
    return record


def machine() -> dict[str, Any]:
    """Return of this machine, and of what this process was told, what bits depend on."""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    units = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "architecture": platform.machine(),
        "processor": fields.get("model name") or fields.get("CPU part") or "unknown",
        "vectors": " ".join(sorted(filter(_VECTORS.fullmatch, units))),
        "accelerator": _accelerator(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def _accelerator() -> str:
    """Return the name of the first GPU, as NVIDIA's driver has it."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        fields: dict[str, str] = dict(re.findall(r"^([\w ]+?):\s*(.*)$", information.read_text(), re.MULTILINE))
        return fields.get("Model", "unknown")
    return "none"


def surroundings() -> dict[str, Any]:
    """Return the versions of what computes, and a digest of our own code."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "none"
    return {"versions": versions, "code": _code()}


def _code() -> str:
    """Return a digest of all our modules that a training runs."""
    digest = hashlib.sha256()
    for package in (arctic_api, arctic_model, arctic_workers):
        [root] = package.__path__
        for file in sorted(Path(root).rglob("*.py")):
            digest.update(f"{package.__name__}/{file.relative_to(root)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def contents(run_folder: Path) -> dict[str, Any]:
    """Return digests of a run's tokenizer, and of the indexes of its token streams, which hold those of the tokens."""
    tokenizer = run_folder / TOKENIZER_FOLDER / "tokenizer.json"
    streams = {index.parent.name: _digest(index) for index in sorted(run_folder.glob(f"{DATA_FOLDER}/*/{INDEX}"))}
    return {"tokenizer": _digest(tokenizer), "streams": streams}


def _digest(file: Path) -> str:
    return sha256(file) if file.is_file() else "missing"


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Return a line for each value that differs between two documents of JSON, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        return [
            line
            for name in names
            for line in differences(before.get(name), now.get(name), f"{path}.{name}" if path else name)
        ]
    if before == now:
        return []
    return [f"{path}: {_shown(before)} made it, {_shown(now)} is here"]


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


def differences_here(
    record: Mapping[str, Any], run_folder: Path, threads: str, spec: Mapping[str, Any] | None
) -> list[str]:
    """Return what a run that began here, now, would have differently.

    Args:
        record: of an attempt of the run.
        run_folder: its folder.
        threads: of each rank, here.
        spec: of the manifest that would be run; None for the one that was.
    """
    here = {**surroundings(), **contents(run_folder)}
    there = {name: record[name] for name in here}
    if spec is not None:
        there["manifest"], here["manifest"] = record["manifest"], spec
    damaged = [
        f"streams.{name}: its tokens are not as they were written"
        for name in here["streams"]
        if not is_whole(run_folder / DATA_FOLDER / name)
    ]
    own = {**machine(), "threads": threads}
    lines = [f"machine.{line}" for kind in record["machines"] for line in differences(kind, own)]
    return differences(there, here) + damaged + lines
