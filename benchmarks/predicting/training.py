"""Steps of one rank: costs fitted to some trainings, others predicted with them, all measured in turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from arctic_model.planning.fitting import fitted
from arctic_model.planning.training_time import TYPICAL, RankStep, TrainingWork, seconds
from benchmarks.form import in_alternation, note
from benchmarks.predicting.cases import FITTED_TRAININGS, PREDICTED_TRAININGS, TRAINING_CASES
from benchmarks.training import one_rank


@dataclass(frozen=True)
class Predicted:
    """Seconds of something, as predicted and as measured."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Share by which the prediction is off."""
        return abs(self.predicted / self.measured - 1)


@dataclass(frozen=True)
class Trainings:
    """What came of them."""

    costs: TrainingWork
    fitted: Mapping[str, Predicted]
    predicted: Mapping[str, Predicted]


def measured_trainings(rounds: int) -> dict[str, float]:
    """Return the least seconds of a step of each case: what the machine does when nothing else does."""
    with one_rank() as ask:
        taken = in_alternation(rounds, {name: partial(ask, f"ours {name}") for name in TRAINING_CASES})
    return {name: min(values) for name, values in taken.items()}


def predicted_trainings(measured: Mapping[str, float]) -> Trainings:
    """Fit, and predict."""
    observations = [(_by_costs(case), measured[name]) for name, case in FITTED_TRAININGS.items()]
    costs = TrainingWork(*fitted(TYPICAL.amounts, observations))
    note(f"costs of a training: {costs}")

    def compared(cases: Mapping[str, RankStep]) -> dict[str, Predicted]:
        return {name: Predicted(seconds(case, costs), measured[name]) for name, case in cases.items()}

    return Trainings(costs, compared(FITTED_TRAININGS), compared(PREDICTED_TRAININGS))


def _by_costs(case: RankStep) -> Callable[[tuple[float, ...]], float]:
    return lambda costs: seconds(case, TrainingWork(*costs))
