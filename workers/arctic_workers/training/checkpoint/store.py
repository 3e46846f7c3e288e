"""The store of a run on a file system: claimed under an epoch, committed to by rename, verified, thinned out. No torch.

Fencing needs no lock. Everything is written below staging/EPOCH, and a claim moves the staging folders of all older
epochs away; so the rename that commits is itself the compare-and-set: under a stale epoch its source no longer exists.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_workers.training.errors import Fenced, Refused, StoreFull
from arctic_workers.training.files import sha256, sync_folder, write_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
OWNER = "owner.json"
FORMAT = 1
FULL = (errno.ENOSPC, errno.EDQUOT)
_DIGITS = 10
"""Of a step in the name of its checkpoint."""


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint is."""

    step: int
    """Optimizer updates done."""
    tokens: int
    stage: str
    """Stage of the last step done."""
    stage_end: bool
    """Whether that stage is done: kept for ever."""
    epoch: int
    world: int
    """Ranks that wrote it, one shard each."""
    time: str
    tensors: dict[str, list[int]]
    """Shape of every tensor, by its Hugging Face name."""
    files: dict[str, dict[str, Any]]
    """`size` and `sha256` of every file, by its name."""
    progress: dict[str, Any]
    """What else the run needs to go on: reports of its stages."""
    format: int = FORMAT
    """Of the folder and its shards; manifests without it have the first one."""

    def to_json(self) -> dict[str, Any]:
        """Return the file's content, with its own digest."""
        body = dict(self.__dict__)
        return {"sha256": _digest(body), "manifest": body}

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Return the manifest of a folder, or None if it is missing or damaged; OSError if that can't be told.

        Raises `Refused` for one that a newer version wrote: that is no damage to fall back from.
        """
        try:
            content = json.loads((folder / MANIFEST).read_bytes())
            body = content["manifest"]
            if content["sha256"] != _digest(body):
                return None
            if (version := body.get("format", 1)) <= FORMAT:
                return cls(**body)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        raise Refused(
            "CheckpointTooNew",
            f"{folder} has format {version}, and these workers read up to {FORMAT}: use the image that wrote it, or a "
            "newer one",
        )


def _means(error: BaseException, number: int) -> bool:
    """Return whether an error is one of the operating system, which safetensors hands on as text only."""
    return (isinstance(error, OSError) and error.errno == number) or f"(os error {number})" in str(error)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Return what is not as it was written in a checkpoint; looks at every `parts`-th file from `part` on.

    An OSError says that it can't be told now: a file that can't be read need not be damaged.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        return f"{MANIFEST} is missing, or is not as it was written"
    for name in sorted(manifest.files)[part::parts]:
        file, expected = folder / name, manifest.files[name]
        try:
            if (size := file.stat().st_size) != expected["size"]:
                return f"{name} has {size} bytes of {expected['size']}"
            if sha256(file) != expected["sha256"]:
                return f"{name} has another content than was written"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


class CheckpointStore:
    """One attempt's handle on the store of its run.

    Args:
        run_folder: the run's folder; created by `claim`.
        epoch: of the attempt.
    """

    def __init__(self, run_folder: Path, epoch: int) -> None:
        self.run_folder = run_folder
        self.epoch = epoch
        self._checkpoints = run_folder / "checkpoints"
        self._staging = run_folder / "staging"
        self._own = self._staging / f"{epoch:010d}"

    def claim(self, uid: str) -> None:
        """Take the store for this epoch, so that no older one can commit any more.

        Raises `Refused` if the folder can't be written or another object's uid owns it, `Fenced` if a newer epoch has
        claimed it, `StoreFull` if there is no room even for that.
        """
        try:
            self._take(uid)
        except OSError as error:
            if error.errno in FULL:
                raise self.full() from error
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise Refused(
                "StoreNotWritable",
                f"{error.filename} can't be written by user {os.getuid()} ({error.strerror}): give the volume of "
                "checkpoint.volume to that user, or name another claim there",
            ) from error
        # Of two claims at once, the later listing sees both folders: either it gives up or it moves the older away.
        for folder in sorted(self._staging.glob("[0-9]*")):
            if folder.name > self._own.name:
                raise Fenced(f"epoch {int(folder.name)} has claimed {self.run_folder}, this is epoch {self.epoch}")
            if folder.name < self._own.name:
                self._move_away(folder)
        for folder in self._staging.glob(".fenced-*"):  # of a claim that ended before it had removed it
            shutil.rmtree(folder, ignore_errors=True)
        sync_folder(self._staging)

    def _take(self, uid: str) -> None:
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)
        self._check_owner(uid)
        self._move_away(self._own)
        self._own.mkdir()

    def _check_owner(self, uid: str) -> None:
        path = self.run_folder / OWNER
        if not path.exists():
            write_json(path, {"uid": uid})
        try:
            owner = json.loads(path.read_text())["uid"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused("CheckpointDamaged", f"{path} can't be read: move {self.run_folder} away") from error
        if owner != uid:
            raise Refused(
                "ForeignCheckpoint",
                f"{self.run_folder} belongs to the ArcticTraining with uid {owner}, not to {uid}: "
                "choose another checkpoint path, or start from its weights with model.from",
            )

    def _move_away(self, folder: Path) -> None:
        aside = folder.with_name(f".fenced-{folder.name}-{self.epoch}")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            folder.rename(aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)

    def stage(self, name: str) -> Path:
        """Make a folder to write into, if another rank has not; `Fenced` under a stale epoch."""
        folder = self._own / name
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise self._fenced() from None
        return folder

    def publish(self, name: str, target: Path) -> None:
        """Give a staged folder its lasting name, in place of an older one; `Fenced` under a stale epoch."""
        replaced = self._own / f".replaced-{name}"
        staged = self._own / name
        try:
            sync_folder(staged)
            if target.exists():
                target.rename(replaced)
            staged.rename(target)
        except FileNotFoundError:
            raise self._fenced() from None
        sync_folder(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def explain(self, error: BaseException) -> BaseException:
        """Return what is behind an error of a write: `Fenced` if a newer epoch took over, or `StoreFull`."""
        if not self._own.exists():
            return self._fenced()
        return self.full() if any(_means(error, number) for number in FULL) else error

    def full(self) -> StoreFull:
        """Return what there is to say of a full volume."""
        return StoreFull(
            f"there is no room left for {self.run_folder}: make the claim of checkpoint.volume larger, remove what is "
            "not needed there, or lower checkpoint.keep"
        )

    def keep_note(self, write: Callable[[], None]) -> None:
        """Write what is for people alone: a full volume is no reason to end for it."""
        try:
            write()
        except OSError as error:
            if not isinstance(full := self.explain(error), StoreFull):
                raise
            log.warning("a note is lost: %s", full)

    def discard(self) -> None:
        """Remove what is staged; no rank may be writing there."""
        for folder in self._own.glob("*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _fenced(self) -> Fenced:
        return Fenced(f"a newer attempt has claimed {self.run_folder}: epoch {self.epoch} can't commit any more")

    def folder(self, step: int) -> Path:
        """Return where the checkpoint of a step is committed to."""
        return self._checkpoints / self.name(step)

    @staticmethod
    def name(step: int) -> str:
        """Return the name of a checkpoint's folder."""
        return f"step-{step:0{_DIGITS}d}"

    def commit(self, manifest: Manifest) -> Path:
        """Commit what was staged for a step and return its folder; `Fenced` under a stale epoch."""
        name = self.name(manifest.step)
        write_json(self.stage(name) / MANIFEST, manifest.to_json())
        target = self.folder(manifest.step)
        self.publish(name, target)
        return target

    def candidates(self) -> list[Path]:
        """Return the folders of committed checkpoints, the newest first; they may be damaged.

        What people put beside them under longer names, such as copies, is theirs.
        """
        return sorted(self._checkpoints.glob(f"step-{'[0-9]' * _DIGITS}"), reverse=True)

    def thin_out(self, keep: int, damaged: Collection[Path] = ()) -> None:
        """Delete `damaged` checkpoints, and of the others all but the newest `keep` and the last of each stage."""
        for folder in damaged:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.candidates()[keep:]:
            manifest = Manifest.read(folder)
            if manifest is None or not manifest.stage_end:
                shutil.rmtree(folder, ignore_errors=True)
