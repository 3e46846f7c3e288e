"""The training loop of one rank. All run it in step: they leave it together, for the same reason, at the same step."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist

from arctic_api.common import parse_duration
from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import LOSS_SPIKE, SUSPENDED, Report, TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_rpc.control_pb2 import (
    CHECKPOINTING,
    DONE,
    EXPORTING,
    PAUSED,
    RUNNING,
    STARTING,
    Phase,
    TrainingState,
    WorkerState,
)
from arctic_workers.evaluation import evaluate
from arctic_workers.training.accounts import CHECKPOINT, DATA, EVALUATION, PAUSE
from arctic_workers.training.base import Base
from arctic_workers.training.books import Books, Measures
from arctic_workers.training.checkpoint.checkpointer import Checkpointer, Position
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.checkpoint.zero import finish_restore, get_step, local_pieces, restored_pieces
from arctic_workers.training.curriculum import Curriculum, StagePlan
from arctic_workers.training.data.accounts import Accounts
from arctic_workers.training.data.batches import TrainingData, main_category
from arctic_workers.training.data.windows import Stream
from arctic_workers.training.desk import Desk
from arctic_workers.training.engine import (
    Ranks,
    gradient_norm,
    gradients_of,
    leave_update_out,
    mean_over_ranks,
    named_tensors,
    patience,
    set_learning_rate,
    tensor_names,
)
from arctic_workers.training.errors import Refused
from arctic_workers.training.export import EXPORT, export
from arctic_workers.training.files import write_json
from arctic_workers.training.guard import SpikeGuard
from arctic_workers.training.hang.pulse import Pulsing
from arctic_workers.training.held_out import HeldOut
from arctic_workers.training.journal import ATTEMPT_BEGAN, EVENTS
from arctic_workers.training.milestones import CURVE, Milestones
from arctic_workers.training.progress import (
    Progress,
    append_line,
    check_same,
    checkpoint_state,
    now,
    source_state,
    stage_state,
    trained_with,
)

log = logging.getLogger(__name__)

HOLD_SECONDS = 0.2
LOG_SECONDS = 5.0
SETTLE_SECONDS = 0.02
MOST_SKIPPED = 10
"""Updates in a row that may be left out because of infinite gradients: more are no accident of a batch."""


class Diverged(Exception):  # noqa: N818 - names what happened
    """The loss or its gradient is no finite number any more."""


@dataclass(frozen=True)
class Wishes:
    """What any rank of the world wants, the same on all of them."""

    stop: bool
    pause: bool
    checkpoint: bool
    busy: bool
    """Whether a checkpoint is still being written."""
    full: bool
    """Whether the store had no room for the last one."""
    look: bool
    """Whether it is time to look at the books."""


@dataclass(frozen=True)
class Workplace:
    """All that a trainer works with; made by `arctic_workers.training.rank`."""

    world: TrainingWorld
    ranks: Ranks
    config: ArcticConfig
    curriculum: Curriculum
    data: TrainingData
    recomputed: frozenset[str]
    """Stages in which activations are computed again instead of kept."""
    held_out: Mapping[str, Stream]
    sources: Accounts
    engine: Any
    base: Base | None
    """What stands under an adapter; None where all weights are trained."""
    store: CheckpointStore
    checkpointer: Checkpointer
    desk: Desk
    pulsing: Pulsing
    books: Books

    @property
    def spec(self) -> ArcticTrainingSpec:
        """The manifest's."""
        return self.world.spec


class Trainer:
    """One rank's training, from the newest checkpoint to the export."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._names = tensor_names(place.engine.module)
        self._categories = {source.name: source.category for source in place.spec.data.sources}
        self._progress = Progress(place.curriculum)
        self._evaluation: dict[str, float] = {}
        self._judged_step = -1
        self._measures = Measures()
        self._books = place.books
        self._guard = SpikeGuard(place.spec.restart.loss_spike)
        self._milestones = Milestones.of(place.spec, place.curriculum)
        self._last_checkpoint = time.monotonic()
        self._last_log = 0.0
        self._saved_step = 0
        self._stall_seconds = 0.0
        self._put_off = False  # a checkpoint that was due while the one before it was being written
        self._skipped = 0  # updates in a row
        self._left_out = 0  # updates of the whole run
        self._last_stage = place.curriculum.stages[self._wanted_last_stage(place.spec.stop_after)]
        self.step = 0

    def run(self) -> Report:
        """Train to the end, or until somebody asks to stop; returns how it ended."""
        self._restore()
        place = self._place
        self._books.begin(self.step, self._place.store.keep_note)
        self._note_event(ATTEMPT_BEGAN, ranks=place.ranks.world)
        place.desk.begin()
        self._publish(STARTING)
        if place.spec.paused and self._hold().stop:
            return self._interrupt()
        while self.step < self._last_stage.end_step:
            stage = place.curriculum.stage_at(self.step)
            if self._milestones.rests(self.step):
                return self._rest(place.curriculum.stage_at(max(0, self.step - 1)))
            if self.step == stage.first_step:
                self._begin(stage)
            with place.pulsing.step(self.step, stage.name):
                wishes = self._train_step(stage)
            if self._guard.alarm is not None:
                self._answer_spike(stage, self._guard.alarm)
                continue
            self._after_step(stage, wishes)
            if wishes.pause:
                wishes = self._hold()
            if wishes.stop and self.step < self._last_stage.end_step:
                return self._interrupt()
        return self._finish()

    # --- one step

    def _train_step(self, stage: StagePlan) -> Wishes:
        """Make one update from this step's tokens, and learn what the ranks wish."""
        place, engine = self._place, self._place.engine
        with self._books.parts.of(DATA):
            step = self.step + self._guard.skipped_data(stage.name)
            share = (place.ranks.reader, place.ranks.readers, place.spec.batch.micro_batch_size)
            batches = place.data.micro_batches(stage, step, *share)
            self._books.tally.expect(place.data.sources(stage, step, *share))
        rate = stage.learning_rate(self.step)
        set_learning_rate(engine, rate)
        targets = max(1, place.data.targets(stage, step))
        engine.module.arctic.recompute(stage.name in place.recomputed)
        with self._books.overlap.step():
            loss = gradients_of(engine, batches, targets, place.ranks, self._books.tally.counting)
        loss_value, wishes = self._exchange(loss)
        allowed = self._guard.allows(loss_value, can_go_back=self._saved_step > 0)
        if allowed and not math.isfinite(loss_value):
            raise Diverged(
                f"the loss is {loss_value} at step {self.step + 1} of stage {stage.name}: lower its learning rate"
            )
        (engine.step if allowed else partial(leave_update_out, engine))()
        if self._guard.alarm is not None:
            return wishes
        self.step += 1
        self._measures = Measures(loss_value, rate, gradient_norm(engine))
        if not allowed:
            self._note_spike(stage, loss_value)
        self._count_skipped(stage, "the gradient was not finite" if allowed else "the loss jumped")
        self._books.stepped(stage, place.curriculum.tokens_done(self.step))
        self._publish(RUNNING)
        self._log(stage)
        return wishes

    def _after_step(self, stage: StagePlan, wishes: Wishes) -> None:
        """Look at the books, judge the model and keep it, where it is time for that."""
        if wishes.look or self.step == stage.end_step:
            self._look(stage)
        if self.step == stage.end_step:
            self._end(stage)
            return
        if self._milestones.evaluates(self.step) and not self._milestones.rests(self.step):
            self._evaluate(stage, self._subject(stage))
        if wishes.checkpoint or self._put_off or self._is_due():
            self._start_checkpoint_unless(wishes.busy)

    def _count_skipped(self, stage: StagePlan, why: str) -> None:
        """Notice an update that DeepSpeed, on all ranks, left out: its tokens are spent, and nothing was learnt."""
        if not self._place.engine.optimizer.overflow:
            self._skipped = 0
            return
        self._skipped += 1
        self._left_out += 1
        if self._place.ranks.leader:
            log.warning("step %d: %s, the update is left out", self.step, why)
        if self._skipped >= min(MOST_SKIPPED, stage.steps):
            raise Diverged(
                f"{why} {self._skipped} times in a row, up to step {self.step} of stage {stage.name}: lower its "
                "learning rate"
            )

    def _look(self, stage: StagePlan) -> None:
        tokens = self._place.curriculum.tokens_done(self.step)
        self._books.look(stage, self.step, tokens, self._measures, self._place.store.keep_note)

    # --- losses that jump

    def _answer_spike(self, stage: StagePlan, loss: float) -> None:
        """End the run, its checkpoint kept, or go back to the last checkpoint and past the data up to here."""
        self._note_spike(stage, loss)
        if self._guard.policy == "stop":
            limit = self._guard.limit
            self._write_checkpoint()
            raise Refused(
                LOSS_SPIKE,
                f"the loss jumped to {loss:.4f} at step {self.step + 1} of stage {stage.name}, where at most "
                f"{limit:.4f} was to be expected: the checkpoint of step {self.step} is from before it; lower the "
                "learning rate, or write another restart.lossSpike",
            )
        at, skipped = self.step, self._guard.skipped_data(stage.name)
        with patience(), self._books.parts.of(CHECKPOINT):
            self._settle()
            found = self._restore()
        skipped += at + 1 - max(self.step, stage.first_step)
        if not self._guard.went_back(stage.name, skipped, self.step) or not found:
            raise Diverged(
                f"the loss jumped to {loss:.4f} at step {at + 1} of stage {stage.name}, and going back to a checkpoint "
                "does not help any more: lower its learning rate"
            )
        self._books.begin(self.step, self._place.store.keep_note)

    def _note_spike(self, stage: StagePlan, loss: float) -> None:
        if self._place.ranks.leader:
            log.warning("the loss jumped to %.4f at step %d: %s", loss, self.step, self._guard.policy)
        self._note_event(LOSS_SPIKE, stage=stage.name, loss=loss, limit=self._guard.limit, policy=self._guard.policy)

    def _note_event(self, kind: str, **details: object) -> None:
        place = self._place
        if place.ranks.leader:
            entry = {"time": now(), "attempt": place.world.epoch, "kind": kind, "step": self.step, **details}
            self._place.store.keep_note(lambda: append_line(place.store.run_folder / EVENTS, entry))

    def _exchange(self, loss: float) -> tuple[float, Wishes]:
        """Return the mean loss and what any rank wishes, in one reduction, the same on all ranks."""
        place = self._place
        place.checkpointer.check()
        desk = place.desk
        desk.look()
        self._answer_checkpoints()
        timed = place.ranks.leader and self._interval_is_over()
        # Whether it is busy comes first: what has ended by then has said how.
        own = [desk.stop, desk.pause, desk.checkpoint or timed, place.checkpointer.busy, place.checkpointer.full]
        own.append(self._books.due)
        last_stage = self._wanted_last_stage(desk.stop_after) if place.ranks.leader else 0
        mean, *reduced, last = mean_over_ranks([loss, *own, last_stage], place.ranks.device)
        self._last_stage = place.curriculum.stages[round(last * place.ranks.world)]
        wishes = Wishes(*(wish > 0 for wish in reduced))
        if wishes.full:
            self._give_up_checkpoint(wishes.busy)
        return mean, wishes

    def _wanted_last_stage(self, name: str | None) -> int:
        """Return the index of the stage that the run is to end with: the last one unless another is named."""
        stages = self._place.curriculum.stages
        return next((stage.index for stage in stages if stage.name == name), len(stages) - 1)

    def _hold(self) -> Wishes:
        """Wait while somebody wants a pause, still writing checkpoints that are asked for or were put off."""
        self._publish(PAUSED)
        self._books.interrupted()
        while True:
            with self._books.parts.of(PAUSE):
                time.sleep(HOLD_SECONDS)
            _, wishes = self._exchange(self._measures.loss)
            if wishes.checkpoint or self._put_off:
                self._start_checkpoint_unless(wishes.busy)
            if wishes.stop or not wishes.pause:
                return wishes

    # --- stages

    def _begin(self, stage: StagePlan) -> None:
        self._guard.begin_stage()
        loss = self._held_out_loss(stage, self._subject(stage))
        self._progress.begin(stage, loss)
        self._note(stage, "start", loss)

    def _end(self, stage: StagePlan) -> None:
        """Judge a stage that is done, and keep its checkpoint."""
        subject = self._subject(stage)
        loss = self._held_out_loss(stage, subject)
        self._note(stage, "end", loss)
        if self._judged_at_the_end:
            self._evaluate(stage, subject)
        self._progress.end(stage, loss, self._uri(f"checkpoints/{CheckpointStore.name(self.step)}"))
        self._write_checkpoint()

    def _subject(self, stage: StagePlan) -> HeldOut:
        place = self._place
        return HeldOut(
            place.engine.module,
            place.ranks,
            place.held_out,
            stage.spec.sequence_length,
            stage.tokens_per_step,
            place.spec.batch.micro_batch_size,
        )

    def _held_out_loss(self, stage: StagePlan, subject: HeldOut) -> float | None:
        """Return the loss on held-out text of the stage's main category; None where there is no such text."""
        category = main_category(stage, self._categories)
        with self._books.parts.of(EVALUATION):
            return subject.held_out_loss(category) if category in subject.categories else None

    @property
    def _judged_at_the_end(self) -> bool:
        evaluation = self._place.spec.evaluation
        return evaluation is not None and evaluation.at_stage_end

    def _evaluate(self, stage: StagePlan, subject: HeldOut) -> None:
        """Run the suites, and keep what they find: the stage's own figures are those of its end."""
        evaluation, place = self._place.spec.evaluation, self._place
        assert evaluation is not None
        with self._books.parts.of(EVALUATION):
            self._evaluation = evaluate(evaluation.suites, subject)
        self._judged_step = self.step
        if not place.ranks.leader:
            return
        curve = place.store.run_folder / CURVE
        curve.parent.mkdir(exist_ok=True)
        tokens = place.curriculum.tokens_done(self.step)
        point = {"stage": stage.name, "step": self.step, "tokens": tokens, "figures": self._evaluation}
        place.store.keep_note(lambda: append_line(curve, point))
        if self.step == stage.end_step:
            place.store.keep_note(lambda: write_json(curve.with_name(f"{stage.name}.json"), self._evaluation))

    def _note(self, stage: StagePlan, moment: str, loss: float | None) -> None:
        """Leave a line about a stage's held-out loss in the run's folder and in the log."""
        if not self._place.ranks.leader:
            return
        category = main_category(stage, self._categories)
        log.info("stage %s, %s: held-out loss on %s %s", stage.name, moment, category, _round(loss))
        self._place.store.keep_note(
            lambda: append_line(
                self._place.store.run_folder / "stages.jsonl",
                {
                    "time": now(),
                    "attempt": self._place.world.attempt,
                    "stage": stage.name,
                    "moment": moment,
                    "step": self.step,
                    "category": category,
                    "held_out_loss": loss,
                },
            )
        )

    # --- checkpoints

    def _restore(self) -> bool:
        """Go to the newest checkpoint that is whole; returns whether there is one."""
        place = self._place
        folder = place.checkpointer.newest_whole(lambda yes: mean_over_ranks([float(yes)], place.ranks.device) == [1.0])
        if folder is None:
            return False
        manifest = place.checkpointer.read(folder, restored_pieces(place.engine, self._names))
        if place.base is not None:
            place.base.check_same(manifest.progress.get("base"), manifest.step)
        check_same(manifest.progress.get("trained_with", {}), place.spec.seed, place.curriculum, manifest.step)
        finish_restore(place.engine, manifest.progress.get("adam_step", manifest.step))
        self.step = self._saved_step = manifest.step
        self._progress = Progress(place.curriculum, manifest.progress["stages"])
        self._evaluation = manifest.progress["evaluation"]
        self._measures.loss = manifest.progress["loss"]
        self._guard.restore(manifest.progress.get("spikes", {}))
        self._left_out = manifest.progress.get("left_out", 0)
        if place.ranks.leader:
            place.checkpointer.last = place.checkpointer.report(manifest)
            log.info("resuming from step %d (%s)", self.step, folder)
        return True

    def _position(self) -> Position:
        place = self._place
        stage = place.curriculum.stage_at(self.step - 1)
        progress = {
            "stages": self._progress.to_json(),
            "evaluation": self._evaluation,
            "loss": self._measures.loss,
            "base": None if place.base is None else place.base.to_json(),
            "spikes": self._guard.to_json(),
            "left_out": self._left_out,
            "adam_step": get_step(place.engine),  # fewer than steps where updates were left out
            "trained_with": trained_with(
                place.spec.seed,
                [stage for stage in place.curriculum.stages if stage.first_step < self.step],
                place.curriculum.share,
            ),
        }
        return Position(
            self.step, place.curriculum.tokens_done(self.step), stage.name, self.step == stage.end_step, progress
        )

    def _start_checkpoint_unless(self, busy: bool) -> None:
        """Begin a checkpoint, or put it off: a rank that waited here for its last one would keep all others waiting."""
        if not busy:
            with self._stalled():
                self._start_checkpoint()
            return
        if not self._put_off and self._place.ranks.leader:
            log.warning("the checkpoint of step %d is put off: the one before it is still being written", self.step)
        self._put_off = True

    def _start_checkpoint(self) -> None:
        """Begin to write a checkpoint of this step, unless that is done or under way."""
        place = self._place
        place.desk.promise_checkpoint(self.step)
        self._put_off = False
        if self._saved_step == self.step:
            return
        self._saved_step = self.step
        place.checkpointer.start(local_pieces(place.engine, self._names), self._position())
        self._last_checkpoint = time.monotonic()

    def _write_checkpoint(self) -> None:
        """Write a checkpoint and wait until it is committed; `StoreFull`, on all ranks, if it can't be."""
        with patience(), self._stalled():
            self._settle()
            self._start_checkpoint()
            if not self._settle():
                raise self._place.store.full()
        self._answer_checkpoints()

    @contextmanager
    def _stalled(self) -> Iterator[None]:
        start = time.monotonic()
        with self._books.parts.of(CHECKPOINT):
            yield
        self._stall_seconds += time.monotonic() - start

    def _settle(self) -> bool:
        """Wait until no rank writes any more; returns whether what was written is committed. Collective."""
        place, whole = self._place, True
        while True:
            place.checkpointer.check()
            own = [place.checkpointer.busy, place.checkpointer.full]
            busy, full = (value > 0 for value in mean_over_ranks([float(each) for each in own], place.ranks.device))
            if full:
                whole = False
                self._give_up_checkpoint(busy)
            if not busy:
                return whole
            time.sleep(SETTLE_SECONDS)

    def _give_up_checkpoint(self, busy: bool) -> None:
        """Go on without a checkpoint that the store has no room for: the next one that is due may find some."""
        place = self._place
        place.checkpointer.give_up()
        if busy:
            return
        place.checkpointer.forget()
        self._saved_step = -1
        place.desk.refuse_checkpoints(str(place.store.full()))
        if place.ranks.leader:
            log.warning("a checkpoint was given up, and training goes on: %s", place.store.full())

    def _answer_checkpoints(self) -> None:
        last = self._place.checkpointer.last
        if last is not None:
            self._place.desk.answer_checkpoints(last)

    def _is_due(self) -> bool:
        every = self._place.spec.checkpoint.every
        return every.steps is not None and self.step % every.steps == 0

    def _interval_is_over(self) -> bool:
        every = self._place.spec.checkpoint.every
        if every.interval is None:
            return False
        return time.monotonic() - self._last_checkpoint >= parse_duration(every.interval)

    # --- the end

    def _interrupt(self) -> Report:
        self._publish(CHECKPOINTING)
        self._write_checkpoint()
        return self._report("interrupted", "Interrupted", f"stopped after step {self.step}, which is in a checkpoint")

    def _rest(self, stage: StagePlan) -> Report:
        """Judge the run where it is to wait until its manifest says more, and keep it."""
        if self._place.spec.evaluation is not None and self._judged_step != self.step:
            self._evaluate(stage, self._subject(stage))
        self._publish(CHECKPOINTING)
        self._write_checkpoint()
        return self._report("interrupted", SUSPENDED, f"suspended after step {self.step}: spec.suspendAt says so")

    def _finish(self) -> Report:
        """Export what the final checkpoint holds; both are committed when this returns."""
        place = self._place
        done = self._ending()
        log.info(done)
        self._write_checkpoint()
        exported = None
        if place.spec.checkpoint.export != "none":
            self._publish(EXPORTING)
            with patience():
                tensors = named_tensors(place.engine.module)
                export(place.store, place.config, tensors, place.ranks, place.spec)
                dist.barrier()
            exported = self._uri(EXPORT)
        self._publish(DONE)
        return self._report("succeeded", "Succeeded", done).model_copy(update={"export_uri": exported})

    def _ending(self) -> str:
        if self._last_stage is self._place.curriculum.stages[-1]:
            return "the curriculum is done"
        return f"stage {self._last_stage.name} is done, with which the training was to end"

    def _report(self, outcome: Any, reason: str, message: str) -> Report:
        place = self._place
        return Report(
            outcome=outcome,
            reason=reason,
            message=message,
            epoch=place.world.epoch,
            step=self.step,
            tokens=place.curriculum.tokens_done(self.step),
            loss=self._measures.loss if math.isfinite(self._measures.loss) else None,
            checkpoint=place.checkpointer.last,
            stages=self._progress.reports(self.step),
            sources=place.sources.at(self.step),
            evaluation=self._evaluation or None,
        )

    # --- what others see

    def _uri(self, path: str) -> str:
        """Return how something in the run's folder is named to the outside: as the pods see it."""
        return f"file://{self._place.world.run_folder}/{path}"

    def _publish(self, phase: Phase) -> None:
        place = self._place
        if not place.ranks.leader or place.desk.link is None:
            return
        state = TrainingState(
            stage=place.curriculum.stage_at(max(0, self.step - 1)).name,
            step=self.step,
            tokens=place.curriculum.tokens_done(self.step),
            loss=self._measures.loss,
            learning_rate=self._measures.learning_rate,
            gradient_norm=self._measures.gradient_norm,
            stages=[stage_state(report) for report in self._progress.reports(self.step)],
            sources=[source_state(report) for report in place.sources.at(self.step)],
            last_checkpoint=checkpoint_state(place.checkpointer.last),
            stop_after=place.desk.stop_after,
            checkpoint_stall_seconds=self._stall_seconds,
            skipped_updates=self._left_out,
            recomputes=place.curriculum.stage_at(max(0, self.step - 1)).name in place.recomputed,
        )
        self._books.tell(state)
        place.desk.link.publish(WorkerState(phase=phase, training=state))

    def _log(self, stage: StagePlan) -> None:
        if not self._place.ranks.leader or time.monotonic() - self._last_log < LOG_SECONDS:
            return
        self._last_log = time.monotonic()
        log.info(
            "stage %s, step %d of %d: loss %.4f, learning rate %.2e, gradient norm %.2f, %.0f tokens/s",
            stage.name,
            self.step,
            self._place.curriculum.steps,
            self._measures.loss,
            self._measures.learning_rate,
            self._measures.gradient_norm,
            self._books.tokens_per_second(),
        )


def _round(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.4f}"
