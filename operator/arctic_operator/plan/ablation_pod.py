"""What an ablation has done by a Job of one pod: what its swarm foretells, and at its end the report. Pure.

Both read the curves of the trainings, which are in their store, and a regression takes libraries, time and memory that
the operator has not. What is foretold is written into the status before anything follows from it, as another release's
libraries may say something else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from arctic_ablation.study import VariantStudy
from arctic_api.ablation import AblationTask, ForetoldStatus, TrialStatus
from arctic_api.ablation_pod import AblationReport, TrialWord
from arctic_api.world import uid5
from arctic_operator.manifests.ablation import task_job
from arctic_operator.manifests.common import Manifest, base_name
from arctic_operator.manifests.single_pod import single_pod_policy
from arctic_operator.observed import Job, Pod, Trouble
from arctic_operator.plan.actions import Delete
from arctic_operator.plan.conditions import lacks_pods, refusal_of, trouble_of, unreachable, until_unreachable
from arctic_operator.plan.endings import NODE_LOST
from arctic_operator.plan.single_job import Ending, ending_of, last_words, lost, pods_of, present
from arctic_operator.plan.words import ablation_report_of
from arctic_operator.settings import Settings
from arctic_operator.trials import Ablation, AblationSeen

FAILED = "PodFailed"
MORE_MEMORY = "raise workers.resources.limits.memory of the chart, or write fewer runs"


@dataclass(frozen=True)
class Task:
    """What is to be done so that a pod does something for an ablation, and what came of it."""

    apply: tuple[Manifest, ...] = ()
    create: tuple[Manifest, ...] = ()
    delete: tuple[Delete, ...] = ()
    report: AblationReport | None = None
    """Of the pod, once it has done it."""
    failed: tuple[str, str] | None = None
    """Reason and sentence."""
    trouble: Trouble | None = None
    short: tuple[Job, ...] = ()
    requeue_after: float | None = None


def told_of(ablation: Ablation) -> list[ForetoldStatus]:
    """Return what the status says that was foretold from the swarm as it is written now."""
    return [each for each in ablation.status.foretold or () if is_of_swarm(ablation, each)]


def is_of_swarm(ablation: Ablation, said: ForetoldStatus) -> bool:
    """Whether something was foretold from the swarm as it is written now, and can be read."""
    study = ablation.study
    if isinstance(study, VariantStudy) or said.digest != study.digest:
        return False
    return study.space.read(said.mixtures) is not None


def plan_task(
    ablation: Ablation,
    seen: AblationSeen,
    task: AblationTask,
    trials: Mapping[str, TrialStatus],
    settings: Settings,
    now: datetime,
    *,
    whole: bool = True,
) -> Task:
    """Return what to do for a task; `trials` are the trainings by name, `whole` is whether none of them is left."""
    name = _name(ablation, task)
    job = next((job for job in seen.jobs if job.name == name), None)
    if job is None:
        words = {name: _word(seen, trial) for name, trial in trials.items()}
        made = task_job(ablation, name, task, told_of(ablation), words, settings, whole=whole)
        return Task(apply=(single_pod_policy(ablation.identity, settings),), create=(made,))
    if job.deleting:
        return Task()
    pods = pods_of(job, seen.pods)
    ending = ending_of(job, pods)
    if ending is not None:
        return _ended(ablation, task, job, *ending)
    pod = present(pods)
    if pod and not pod.ended and unreachable(pod, seen.nodes, now):
        # A Job replaces no pod before its node says that it has ended: the Job goes, and one of the same name follows.
        return Task(delete=_gone(ablation, job), trouble=Trouble(NODE_LOST, lost(pod)))
    return Task(
        trouble=_trouble(job, pod, seen),
        short=(job,) if lacks_pods(job.created, pods, 1, now) else (),
        requeue_after=until_unreachable(pods, seen.nodes, now),
    )


def _name(ablation: Ablation, task: AblationTask) -> str:
    """Return the name of a Job: another one where an edit has changed what it reads."""
    study = ablation.study
    of = f"g{ablation.generation}" if task == "report" or isinstance(study, VariantStudy) else study.digest
    return f"{base_name(ablation.identity)}-{task}-{of}"


def _word(seen: AblationSeen, trial: TrialStatus) -> TrialWord:
    known = seen.trials.get(trial.name)
    return TrialWord(uid5=uid5(known.uid) if known else None, failed=trial.message or "", points=trial.points or [])


def _gone(ablation: Ablation, job: Job) -> tuple[Delete, ...]:
    return (Delete("Job", ablation.identity.namespace, job.name, job.uid),)


def _trouble(job: Job, pod: Pod | None, seen: AblationSeen) -> Trouble | None:
    if pod is None:
        return refusal_of(job.name, seen.refusals)
    if pod.ended:
        return Trouble("Restarting", last_words(pod, ablation_report_of(pod)))
    return trouble_of([pod], MORE_MEMORY)


def _ended(ablation: Ablation, task: AblationTask, job: Job, how: Ending, pod: Pod | None) -> Task:
    if pod is None:
        if how != "done":
            return Task(failed=(job.reason or FAILED, job.message or "its Job failed"))
        if task == "report":
            return Task(report=AblationReport(outcome="succeeded"))
        return Task(delete=_gone(ablation, job))  # its word is gone with it
    report = ablation_report_of(pod)
    if how == "done" and report is not None:
        return Task(report=report)
    return Task(failed=(report.reason if report and report.reason else FAILED, last_words(pod, report)))
