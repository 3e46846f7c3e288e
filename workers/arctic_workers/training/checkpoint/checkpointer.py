"""Writes and reads the checkpoints of a run: all ranks in parallel, off the critical path, whole or not at all."""

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from arctic_api.world import CHECKPOINT_MISMATCH, CheckpointReport
from arctic_workers.training.checkpoint.store import CheckpointStore, Manifest, damage
from arctic_workers.training.checkpoint.zero import KINDS, Piece
from arctic_workers.training.errors import Refused, StoreFull
from arctic_workers.training.files import put_whole, sha256, sync_file

log = logging.getLogger(__name__)

RNG = "rng"
_POLL_SECONDS = 0.05
PEERS_TIMEOUT = 1800.0
"""Seconds that rank 0 waits for the shards of the others before it gives the checkpoint up."""


@dataclass(frozen=True)
class Position:
    """Where in the run a checkpoint is taken."""

    step: int
    tokens: int
    stage: str
    stage_end: bool
    progress: dict[str, Any]


class _GivenUp(Exception):  # noqa: N818 - no error of this rank's
    """Another rank could not write its shard, so what is staged will not be committed."""


class Checkpointer:
    """One rank's part in the checkpoints of a run.

    Args:
        store: the attempt's handle on the store, claimed by rank 0.
        rank, world: this rank and how many there are.
        shapes: shape of every tensor of the model, by its Hugging Face name.
        keep: how many checkpoints stay, besides the last of each stage.
        uri: how the folder of a step is named to the outside.
        on_commit: told of each checkpoint that rank 0 has committed, with its stage and the moment of `time.monotonic`
            at which it was begun; from the thread that writes.
    """

    def __init__(
        self,
        store: CheckpointStore,
        rank: int,
        world: int,
        shapes: dict[str, list[int]],
        keep: int,
        uri: Callable[[int], str],
        on_commit: Callable[[CheckpointReport, str, float], None] = lambda *_: None,
    ) -> None:
        self._store = store
        self._rank = rank
        self._world = world
        self._shapes = shapes
        self._keep = keep
        self._uri = uri
        self._on_commit = on_commit
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._given_up = threading.Event()
        self._copies: dict[str, Tensor] = {}  # where the state is while it is written
        self._passed_over: set[Path] = set()  # damaged checkpoints, newer than the one that the attempt began from
        self.last: CheckpointReport | None = None
        """The newest checkpoint that this attempt knows as committed; on rank 0 alone."""

    def start(self, pieces: Sequence[Piece], position: Position) -> None:
        """Copy this rank's state and begin to write it; waits for an earlier write to end first."""
        self.finish()
        begun = time.monotonic()
        work = (self._snapshot(pieces), position, begun)
        self._thread = threading.Thread(target=self._guard, args=work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def full(self) -> bool:
        """Whether the last write ended because the store has no room for it: no reason to stop training."""
        return isinstance(self._error, StoreFull)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did but for a `full` store."""
        if self._error is not None and not self.full:
            raise self._error

    def give_up(self) -> None:
        """Let the write under way end without a commit, as some rank's store is full."""
        self._given_up.set()

    def forget(self) -> None:
        """Clear away what was given up, once no rank writes any more."""
        self._error = None
        self._given_up.clear()
        if self._rank == 0:
            self._store.discard()

    def finish(self) -> None:
        """Wait until what was started is written (on rank 0: committed); raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _snapshot(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Copy the state to memory of the host, so that training can go on.

        That memory is kept for the next time: to get it anew takes several times as long as the copy. Of a GPU it is
        pinned, which the GPU reaches by itself.
        """
        device = torch.device("cpu")
        for piece in pieces:
            for kind, tensor in piece.state.items():
                key, device = f"{kind}:{piece.start}:{piece.name}", tensor.device
                if key not in self._copies:
                    self._copies[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._copies[key].copy_(tensor, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        return self._copies | {RNG: torch.get_rng_state()}

    def _guard(self, snapshot: dict[str, Tensor], position: Position, begun: float) -> None:
        try:
            self._write_shard(snapshot, position.step)
            if self._rank == 0:
                self._on_commit(self._commit(position), position.stage, begun)
        except _GivenUp:
            log.debug("given up: %s", self._store.name(position.step))
        except BaseException as error:  # handed to the main thread, whatever it is
            self._error = self._store.explain(error)
            if self.full:
                log.warning("rank %d could not write the checkpoint of step %d: %s", self._rank, position.step, error)

    def _write_shard(self, snapshot: dict[str, Tensor], step: int) -> None:
        folder = self._store.stage(self._store.name(step))
        path = folder / shard_name(self._rank, self._world)
        save_file(snapshot, path)
        sync_file(path)
        receipt = {"size": path.stat().st_size, "sha256": sha256(path)}
        # The last that is done there: once all have theirs, rank 0 syncs the folder and gives it its lasting name.
        put_whole(_receipt(path), json.dumps(receipt).encode())

    def _commit(self, position: Position) -> CheckpointReport:
        folder = self._store.stage(self._store.name(position.step))
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        manifest = Manifest(
            step=position.step,
            tokens=position.tokens,
            stage=position.stage,
            stage_end=position.stage_end,
            epoch=self._store.epoch,
            world=self._world,
            time=now,
            tensors=self._shapes,
            files=self._collect(folder),
            progress=position.progress,
        )
        committed = self._store.commit(manifest)
        self.last = last = self.report(manifest)
        # By their names damaged ones may be newer than this one, which would be deleted in their favour.
        self._store.thin_out(self._keep, damaged=self._passed_over - {committed})
        self._passed_over.clear()
        return last

    def _collect(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Wait for the receipts of all ranks, and take them in."""
        deadline = time.monotonic() + PEERS_TIMEOUT
        files = {}
        for rank in range(self._world):
            name = shard_name(rank, self._world)
            receipt = _receipt(folder / name)
            while not receipt.exists():
                self._store.stage(folder.name)  # Fenced, rather than waiting for what can't come
                if self._given_up.is_set():
                    raise _GivenUp
                if time.monotonic() > deadline:
                    raise TimeoutError(f"rank {rank} wrote no shard of {folder.name} within {PEERS_TIMEOUT:.0f} s")
                time.sleep(_POLL_SECONDS)
            files[name] = json.loads(receipt.read_text())
            receipt.unlink()
        return files

    def report(self, manifest: Manifest) -> CheckpointReport:
        """Return what is said of a committed checkpoint."""
        return CheckpointReport(
            step=manifest.step, tokens=manifest.tokens, uri=self._uri(manifest.step), time=manifest.time
        )

    def read(self, folder: Path, pieces: Sequence[Piece]) -> Manifest:
        """Fill this rank's pieces from a whole checkpoint, written by a world of any shape.

        The random state is set too where the world has the same size. Raises `Refused` for another model's checkpoint.
        """
        manifest = Manifest.read(folder)
        assert manifest is not None, "read() wants a folder that newest_whole() found"
        if manifest.tensors != self._shapes:
            raise Refused(CHECKPOINT_MISMATCH, f"{folder} holds a model of another shape than the manifest's")
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(safe_open(folder / name, framework="pt")) for name in sorted(manifest.files)
            }
            index = index_of(files)
            for piece in pieces:
                for kind in KINDS:
                    fill(piece.state[kind], piece.start, index[kind, piece.name], f"{kind} of {piece.name}")
            if manifest.world == self._world:
                torch.set_rng_state(files[shard_name(self._rank, self._world)].get_tensor(RNG))
        return manifest

    def newest_whole(self, candidates: Sequence[Path], agree: Callable[[bool], bool]) -> Path | None:
        """Return the first of the store's `candidates` that is not damaged, None if there are none. Collective.

        All ranks are given the same. Each reads its share of the files; `agree` tells whether all ranks said yes.
        `Refused` if all are damaged.
        """
        for folder in candidates:
            found = damage(folder, self._rank, self._world)
            if found:
                log.warning("%s is damaged, and passed over: %s", folder, found)
            if agree(found is None):
                return folder
            self._passed_over.add(folder)
        if candidates:
            raise Refused(
                "CheckpointDamaged",
                f"all {len(candidates)} checkpoints in {candidates[0].parent} are damaged: restore one, or remove them",
            )
        return None


def shard_name(rank: int, world: int) -> str:
    """Return the name of a rank's file."""
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


def _receipt(shard: Path) -> Path:
    return shard.with_suffix(".json")


@dataclass(frozen=True)
class _Stored:
    start: int
    length: int
    read: Callable[[int, int], Tensor]


def index_of(files: dict[str, Any]) -> dict[tuple[str, str], list[_Stored]]:
    """Return where the pieces of each (kind, name) are."""
    index: dict[tuple[str, str], list[_Stored]] = defaultdict(list)
    for file in files.values():
        for key in file.keys():  # noqa: SIM118 - not a mapping
            if key == RNG:
                continue
            kind, start, name = key.split(":", 2)
            view = file.get_slice(key)
            index[kind, name].append(_Stored(int(start), view.get_shape()[0], partial(_read_range, view)))
    return index


def _read_range(view: Any, low: int, high: int) -> Tensor:
    part: Tensor = view[low:high]
    return part


def fill(target: Tensor, start: int, stored: Sequence[_Stored], what: str) -> None:
    """Copy elements [start, start + numel) of a stored tensor into `target`."""
    end = start + target.numel()
    done = 0
    for piece in stored:
        low, high = max(start, piece.start), min(end, piece.start + piece.length)
        if low < high:
            target[low - start : high - start].copy_(piece.read(low - piece.start, high - piece.start))
            done += high - low
    if done != target.numel():
        raise Refused("CheckpointDamaged", f"the checkpoint lacks {target.numel() - done} elements of the {what}")
