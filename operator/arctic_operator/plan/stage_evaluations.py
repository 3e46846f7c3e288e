"""Which evaluations are made beside a training, and what they say of it. Pure.

They are objects of their own, so a training goes on while they run, and they run on when it is suspended.
"""

from collections.abc import Iterator, Mapping, Sequence

from arctic_operator.manifests.common import Manifest, stage_evaluation_name
from arctic_operator.manifests.evaluation import stage_evaluation
from arctic_operator.observed import Judged, Training


def evaluations_beside(training: Training, judged: Sequence[Judged]) -> tuple[Manifest, ...]:
    """Return the evaluations that are due, and not there yet."""
    known = {each.name for each in judged}
    due = (stage_evaluation(training, number, stage) for number, stage in _due(training))
    return tuple(made for made in due if made["metadata"]["name"] not in known)


def is_evaluated(training: Training, judged: Sequence[Judged]) -> bool:
    """Whether all evaluations of a training are there and have ended: what is beside it goes with it."""
    return all(each.ended for each in judged) and not evaluations_beside(training, judged)


def _due(training: Training) -> Iterator[tuple[int, str | None]]:
    """Yield number and name of the stages that are over; None for the name where the export is judged in its stead.

    An adapter's checkpoints are of no model: its export is, with the weights that it stands on.
    """
    evaluation, status = training.spec.evaluation, training.status
    if evaluation is None or not evaluation.at_stage_end or not evaluation.data:
        return
    stages = list(enumerate(status.stages or (), 1))
    if training.spec.model.adapter is None:
        yield from ((number, stage.name) for number, stage in stages if stage.checkpoint and stage.completion_time)
    elif status.export is not None:
        yield len(stages), None


def found_beside(training: Training, judged: Sequence[Judged]) -> Mapping[str, str]:
    """Return the newest stage's figure of each suite, by suite and figure."""
    by_name = {each.name: each.figures for each in judged}
    found: dict[str, str] = {}
    for number, _ in enumerate(training.spec.curriculum.stages, 1):
        found |= by_name.get(stage_evaluation_name(training.identity, number), {})
    return found
