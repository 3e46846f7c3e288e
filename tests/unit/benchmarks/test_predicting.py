"""That nothing is predicted which costs were fitted to."""

from benchmarks.predicting.cases import (
    FITTED_LOADS,
    FITTED_MODELS,
    FITTED_TRAININGS,
    MODELS,
    PREDICTED_LOADS,
    PREDICTED_TRAININGS,
)


def test_models_that_are_predicted_are_none_that_costs_are_fitted_to() -> None:
    trained = [case.config for case in FITTED_TRAININGS.values()]
    assert len(PREDICTED_TRAININGS) >= 5
    assert not [name for name, case in PREDICTED_TRAININGS.items() if case.config in trained]
    served = [MODELS[name] for name in FITTED_MODELS]
    assert len(PREDICTED_LOADS) >= 5
    assert not [name for name, load in PREDICTED_LOADS.items() if MODELS[load.model] in served]
    assert {load.model for load in FITTED_LOADS.values()} == set(FITTED_MODELS)
