"""The checkpoints of a run as its trainer sees them: when they are due, put off, given up; what they bring back."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist

from arctic_api.common import parse_duration
from arctic_workers.training.accounts import CHECKPOINT
from arctic_workers.training.books import Measures
from arctic_workers.training.checkpoint.checkpointer import Position
from arctic_workers.training.checkpoint.zero import finish_restore, get_step, local_pieces, restored_pieces
from arctic_workers.training.engine import from_leader, mean_over_ranks, patience, tensor_names
from arctic_workers.training.guard import SpikeGuard
from arctic_workers.training.progress import Progress
from arctic_workers.training.trained import check_same, trained_with
from arctic_workers.training.workplace import Workplace

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02


@dataclass
class Course:
    """How far a run is: what checkpoints keep beside the tensors."""

    progress: Progress
    guard: SpikeGuard
    evaluation: dict[str, float] = field(default_factory=dict)
    measures: Measures = field(default_factory=Measures)
    step: int = 0
    left_out: int = 0
    """Updates of the whole run that were not made."""


class Saving:
    """One rank's part in the checkpoints of a run; all ranks call each method at the same step."""

    def __init__(self, place: Workplace, course: Course) -> None:
        self._place, self._course = place, course
        self._names = tensor_names(place.engine.module)
        self._last_checkpoint = time.monotonic()
        self._saved_step = 0
        self._saved_before = 0
        self.stall_seconds = 0.0
        """Time that the run has waited for checkpoints."""
        self.put_off = False
        """Whether one was due while the one before it was being written."""

    @property
    def any_kept(self) -> bool:
        """Whether there is a checkpoint to go back to, unless it is being written and has to be given up."""
        return self._saved_step > 0

    def restore(self) -> bool:
        """Go to the newest checkpoint that is whole; returns whether there is one."""
        place = self._place
        # One rank looks for all: on a network file system others may not see the newest for a while.
        candidates = from_leader(place.ranks, place.store.candidates)
        folder = place.checkpointer.newest_whole(
            candidates, lambda yes: mean_over_ranks([float(yes)], place.ranks.device) == [1.0]
        )
        if folder is None:
            return False
        manifest = place.checkpointer.read(folder, restored_pieces(place.engine, self._names))
        if place.base is not None:
            place.base.check_same(manifest.progress.get("base"), manifest.step)
        check_same(manifest.progress.get("trained_with", {}), place.spec.seed, place.curriculum, manifest.step)
        finish_restore(place.engine, manifest.progress.get("adam_step", manifest.step))
        self._course.step = self._saved_step = manifest.step
        self._course.progress = Progress(place.curriculum, manifest.progress["stages"])
        self._course.evaluation = manifest.progress["evaluation"]
        self._course.measures.loss = manifest.progress["loss"]
        self._course.guard.restore(manifest.progress.get("spikes", {}))
        self._course.left_out = manifest.progress.get("left_out", 0)
        if place.ranks.leader:
            place.checkpointer.last = place.checkpointer.report(manifest)
            log.info("resuming from step %d (%s)", self._course.step, folder)
        return True

    def _position(self) -> Position:
        place = self._place
        stage = place.curriculum.stage_at(self._course.step - 1)
        progress = {
            "config": place.config.to_dict(),
            "stages": self._course.progress.to_json(),
            "evaluation": self._course.evaluation,
            "loss": self._course.measures.loss,
            "base": None if place.base is None else place.base.to_json(),
            "spikes": self._course.guard.to_json(),
            "left_out": self._course.left_out,
            "adam_step": get_step(place.engine),  # fewer than steps where updates were left out
            "trained_with": trained_with(
                place.spec.seed,
                [stage for stage in place.curriculum.stages if stage.first_step < self._course.step],
                place.curriculum.share,
            ),
        }
        return Position(
            self._course.step,
            place.curriculum.tokens_done(self._course.step),
            stage.name,
            self._course.step == stage.end_step,
            progress,
        )

    def start_unless(self, busy: bool) -> None:
        """Begin a checkpoint, or put it off: a rank that waited here for its last one would keep all others waiting."""
        if not busy:
            with self._stalled():
                self._start()
            return
        if not self.put_off and self._place.ranks.leader:
            log.warning(
                "the checkpoint of step %d is put off: the one before it is still being written", self._course.step
            )
        self.put_off = True

    def _start(self) -> None:
        """Begin to write a checkpoint of this step, unless that is done or under way."""
        place = self._place
        place.desk.promise_checkpoint(self._course.step)
        self.put_off = False
        if self._saved_step == self._course.step:
            return
        self._saved_before, self._saved_step = self._saved_step, self._course.step
        place.checkpointer.start(local_pieces(place.engine, self._names), self._position())
        self._last_checkpoint = time.monotonic()

    def write(self) -> None:
        """Write a checkpoint and wait until it is committed; `StoreFull`, on all ranks, if it can't be."""
        with patience(), self._stalled():
            self.settle()
            self._start()
            if not self.settle():
                raise self._place.store.full()
        self.answer()

    @contextmanager
    def _stalled(self) -> Iterator[None]:
        start = time.monotonic()
        with self._place.books.parts.of(CHECKPOINT):
            yield
        self.stall_seconds += time.monotonic() - start

    def settle(self) -> bool:
        """Wait until no rank writes any more; returns whether what was written is committed. Collective."""
        place, whole = self._place, True
        while True:
            place.checkpointer.check()
            own = [place.checkpointer.busy, place.checkpointer.full]
            busy, full = (value > 0 for value in mean_over_ranks([float(each) for each in own], place.ranks.device))
            if full:
                whole = False
                self.give_up(busy)
            if not busy:
                return whole
            time.sleep(SETTLE_SECONDS)

    def give_up(self, busy: bool) -> None:
        """Go on without a checkpoint that the store has no room for: the next one may find some. Collective."""
        place = self._place
        place.checkpointer.give_up()
        if busy:
            return
        place.checkpointer.forget()
        dist.barrier()  # rank 0 clears away: a rank that is ahead would find its next shard gone
        self._saved_step = self._saved_before
        place.desk.refuse_checkpoints(str(place.store.full()))
        if place.ranks.leader:
            log.warning("a checkpoint was given up, and training goes on: %s", place.store.full())

    def answer(self) -> None:
        """Tell those who asked for a checkpoint of the last one."""
        last = self._place.checkpointer.last
        if last is not None:
            self._place.desk.answer_checkpoints(last)

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint of this step is, by the number of steps."""
        every = self._place.spec.checkpoint.every
        return every.steps is not None and self._course.step % every.steps == 0

    @property
    def interval_is_over(self) -> bool:
        """Whether a checkpoint is due by the time since the last one, on this rank."""
        every = self._place.spec.checkpoint.every
        if every.interval is None:
            return False
        return time.monotonic() - self._last_checkpoint >= parse_duration(every.interval)
