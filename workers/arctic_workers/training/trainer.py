"""The training loop of one rank. All run it in step: they leave it together, for the same reason, at the same step."""

import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist

from arctic_api.world import LOSS_SPIKE, SUSPENDED, Report
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
from arctic_workers.training.books import Measures
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.curriculum import StagePlan
from arctic_workers.training.data.batches import main_category
from arctic_workers.training.engine import (
    gradient_norm,
    gradients_of,
    leave_update_out,
    mean_over_ranks,
    named_tensors,
    patience,
    set_learning_rate,
)
from arctic_workers.training.errors import Refused
from arctic_workers.training.export import EXPORT, export
from arctic_workers.training.files import write_json
from arctic_workers.training.guard import SpikeGuard
from arctic_workers.training.held_out import HeldOut
from arctic_workers.training.journal import ATTEMPT_BEGAN, EVENTS, append_line
from arctic_workers.training.milestones import CURVE, Milestones
from arctic_workers.training.progress import (
    Progress,
    checkpoint_state,
    now,
    source_state,
    stage_state,
)
from arctic_workers.training.saving import Course, Saving
from arctic_workers.training.workplace import Workplace

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


class Trainer:
    """One rank's training, from the newest checkpoint to the export."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._categories = {source.name: source.category for source in place.spec.data.sources}
        self._course = Course(Progress(place.curriculum), SpikeGuard(place.spec.restart.loss_spike))
        self._saving = Saving(place, self._course)
        self._judged_step = -1
        self._milestones = Milestones.of(place.spec, place.curriculum)
        self._books = place.books
        self._last_log = 0.0
        self._skipped = 0  # updates in a row
        self._last_stage = place.curriculum.stages[self._wanted_last_stage(place.spec.stop_after)]

    @property
    def step(self) -> int:
        """Updates that are made."""
        return self._course.step

    def run(self) -> Report:
        """Train to the end, or until somebody asks to stop; returns how it ended."""
        try:
            return self._run()
        finally:
            self._place.traces.leave(self.step, done=False)

    def _run(self) -> Report:
        self._saving.restore()
        place = self._place
        self._books.begin(self.step, self._place.store.keep_note)
        found = [report.wire() for report in place.sources.at(self.step)]
        self._note_event(ATTEMPT_BEGAN, ranks=place.ranks.world, sources=found)
        place.desk.begin()
        self._publish(STARTING)
        if place.spec.paused and self._hold().stop:
            return self._interrupt()
        while self.step < self._last_stage.end_step:
            stage = place.curriculum.stage_at(self.step)
            if self._milestones.rests(self.step):
                return self._rest(place.curriculum.stage_at(max(0, self.step - 1)))
            place.traces.enter(stage.name, self.step)
            if self.step == stage.first_step:
                self._begin(stage)
            with place.pulsing.step(self.step, stage.name):
                wishes = self._train_step(stage)
            if self._course.guard.alarm is not None:
                self._answer_spike(stage, self._course.guard.alarm)
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
            place.data.pass_over(self._course.guard.skipped_data)
            share = (place.ranks.reader, place.ranks.readers, place.spec.batch.micro_batch_size)
            batches = place.data.micro_batches(stage, self.step, *share)
            self._books.tally.expect(place.data.sources(stage, self.step, *share))
        rate = stage.learning_rate(self.step)
        set_learning_rate(engine, rate)
        targets = max(1, place.data.targets(stage, self.step))
        engine.module.arctic.recompute(stage.name in place.room.recomputed)
        with self._books.overlap.step():
            loss = gradients_of(engine, batches, targets, place.ranks, self._books.tally.counting)
        loss_value, wishes = self._exchange(loss)
        allowed = self._course.guard.allows(loss_value, can_go_back=self._saving.any_kept)
        if allowed and not math.isfinite(loss_value):
            raise Diverged(
                f"the loss is {loss_value} at step {self.step + 1} of stage {stage.name}: lower its learning rate"
            )
        with self._books.overlap.update():
            (engine.step if allowed else partial(leave_update_out, engine))()
        if self._course.guard.alarm is not None:
            return wishes
        self._course.step += 1
        self._course.measures = Measures(loss_value, rate, gradient_norm(engine))
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
        if wishes.checkpoint or self._saving.put_off or self._saving.is_due:
            self._saving.start_unless(wishes.busy)

    def _count_skipped(self, stage: StagePlan, why: str) -> None:
        """Notice an update that DeepSpeed, on all ranks, left out: its tokens are spent, and nothing was learnt."""
        if not self._place.engine.optimizer.overflow:
            self._skipped = 0
            return
        self._skipped += 1
        self._course.left_out += 1
        if self._place.ranks.leader:
            log.warning("step %d: %s, the update is left out", self.step, why)
        if self._skipped >= min(MOST_SKIPPED, stage.steps):
            raise Diverged(
                f"{why} {self._skipped} times in a row, up to step {self.step} of stage {stage.name}: lower its "
                "learning rate"
            )

    def _look(self, stage: StagePlan) -> None:
        tokens, epochs = self._place.curriculum.tokens_done(self.step), self._place.data.epochs(self.step)
        self._books.look(stage, self.step, tokens, self._course.measures, epochs, self._place.store.keep_note)

    # --- losses that jump

    def _answer_spike(self, stage: StagePlan, loss: float) -> None:
        """End the run, its checkpoint kept, or go back to the last checkpoint and past the data up to here."""
        if self._course.guard.policy == "stop":
            self._note_spike(stage, loss)
            limit = self._course.guard.limit
            self._saving.write()
            raise Refused(
                LOSS_SPIKE,
                f"the loss jumped to {loss:.4f} at step {self.step + 1} of stage {stage.name}, where at most "
                f"{limit:.4f} was to be expected: the checkpoint of step {self.step} is from before it; lower the "
                "learning rate, or write another restart.lossSpike",
            )
        with patience(), self._books.parts.of(CHECKPOINT):
            self._saving.settle()
            if not self._saving.any_kept:  # the step is taken again, as before the first checkpoint
                self._course.guard.alarm = None
                return
            self._note_spike(stage, loss)
            at, skipped = self.step, self._course.guard.skipped_data.get(stage.name, 0)
            found = self._saving.restore()
        skipped += at + 1 - max(self.step, stage.first_step)
        if not self._course.guard.went_back(stage.name, skipped, self.step) or not found:
            raise Diverged(
                f"the loss jumped to {loss:.4f} at step {at + 1} of stage {stage.name}, and going back to a checkpoint "
                "does not help any more: lower its learning rate"
            )
        self._books.begin(self.step, self._place.store.keep_note)

    def _note_spike(self, stage: StagePlan, loss: float) -> None:
        guard = self._course.guard
        if self._place.ranks.leader:
            log.warning("the loss jumped to %.4f at step %d: %s", loss, self.step, guard.policy)
        self._note_event(LOSS_SPIKE, stage=stage.name, loss=loss, limit=guard.limit, policy=guard.policy)

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
        self._saving.answer()
        timed = place.ranks.leader and self._saving.interval_is_over
        # Whether it is busy comes first: what has ended by then has said how.
        own = [desk.stop, desk.pause, desk.checkpoint or timed, place.checkpointer.busy, place.checkpointer.full]
        own.append(self._books.due)
        last_stage = self._wanted_last_stage(desk.stop_after) if place.ranks.leader else 0
        mean, *reduced, last = mean_over_ranks([loss, *own, last_stage], place.ranks.device)
        self._last_stage = place.curriculum.stages[round(last * place.ranks.world)]
        wishes = Wishes(*(wish > 0 for wish in reduced))
        if wishes.full:
            self._saving.give_up(wishes.busy)
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
            _, wishes = self._exchange(self._course.measures.loss)
            if wishes.checkpoint or self._saving.put_off:
                self._saving.start_unless(wishes.busy)
            if wishes.stop or not wishes.pause:
                return wishes

    # --- stages

    def _begin(self, stage: StagePlan) -> None:
        self._course.guard.begin_stage()
        loss = self._held_out_loss(stage, self._subject(stage))
        self._course.progress.begin(stage, loss)
        self._note(stage, "start", loss)

    def _end(self, stage: StagePlan) -> None:
        """Judge a stage that is done, and keep its checkpoint."""
        subject = self._subject(stage)
        loss = self._held_out_loss(stage, subject)
        self._note(stage, "end", loss)
        if self._judged_at_the_end or self._milestones.evaluates(self.step):
            self._evaluate(stage, subject)
        self._course.progress.end(stage, loss, self._place.uri(f"checkpoints/{CheckpointStore.name(self.step)}"))
        self._saving.write()
        self._place.traces.leave(self.step, done=True)

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
        with self._books.parts.of(EVALUATION), place.traces.part("evaluation", self.step):
            self._course.evaluation = evaluate(evaluation.suites, subject)
        self._judged_step = self.step
        if not place.ranks.leader:
            return
        curve = place.store.run_folder / CURVE
        tokens = place.curriculum.tokens_done(self.step)
        point = {"stage": stage.name, "step": self.step, "tokens": tokens, "figures": self._course.evaluation}

        def keep() -> None:
            curve.parent.mkdir(exist_ok=True)
            append_line(curve, point)
            if self.step == stage.end_step:
                write_json(curve.with_name(f"{stage.name}.json"), self._course.evaluation)

        place.store.keep_note(keep)

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

    # --- the end

    def _interrupt(self) -> Report:
        self._publish(CHECKPOINTING)
        self._saving.write()
        return self._report("interrupted", "Interrupted", f"stopped after step {self.step}, which is in a checkpoint")

    def _rest(self, stage: StagePlan) -> Report:
        """Judge the run where it is to wait until its manifest says more, and keep it."""
        if self._place.spec.evaluation is not None and self._judged_step != self.step:
            self._evaluate(stage, self._subject(stage))
        self._publish(CHECKPOINTING)
        self._saving.write()
        return self._report("interrupted", SUSPENDED, f"suspended after step {self.step}: spec.suspendAt says so")

    def _finish(self) -> Report:
        """Export what the final checkpoint holds; both are committed when this returns."""
        place = self._place
        done = self._ending()
        log.info(done)
        self._saving.write()
        exported = None
        if place.spec.checkpoint.export != "none":
            self._publish(EXPORTING)
            with patience(), place.traces.part("export", self.step):
                tensors = named_tensors(place.engine.module)
                export(place.store, place.config, tensors, place.ranks, place.spec, place.base)
                dist.barrier()
            exported = self._place.uri(EXPORT)
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
            loss=self._course.measures.loss if math.isfinite(self._course.measures.loss) else None,
            checkpoint=place.checkpointer.last,
            stages=self._course.progress.reports(self.step),
            sources=place.sources.at(self.step),
            evaluation=None if place.spec.evaluation is None else self._course.evaluation,
        )

    # --- what others see

    def _publish(self, phase: Phase) -> None:
        place = self._place
        if not place.ranks.leader or place.desk.link is None:
            return
        state = TrainingState(
            stage=place.curriculum.stage_at(max(0, self.step - 1)).name,
            step=self.step,
            tokens=place.curriculum.tokens_done(self.step),
            loss=self._course.measures.loss,
            learning_rate=self._course.measures.learning_rate,
            gradient_norm=self._course.measures.gradient_norm,
            stages=[stage_state(report) for report in self._course.progress.reports(self.step)],
            sources=[source_state(report) for report in place.sources.at(self.step)],
            last_checkpoint=checkpoint_state(place.checkpointer.last),
            stop_after=place.desk.stop_after,
            checkpoint_stall_seconds=self._saving.stall_seconds,
            skipped_updates=self._course.left_out,
            recomputes=place.curriculum.stage_at(max(0, self.step - 1)).name in place.room.recomputed,
            planned_memory_bytes=place.room.taken,
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
            self._course.measures.loss,
            self._course.measures.learning_rate,
            self._course.measures.gradient_norm,
            self._books.tokens_per_second(),
        )


def _round(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.4f}"
