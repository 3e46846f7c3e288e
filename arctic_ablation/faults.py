"""What is wrong with an ablation's trainings, before any of them starts."""

from arctic_ablation.study import Run, Study
from arctic_ablation.variants import VariantError, Wire, held_out_categories, training_manifest, validation_sources
from arctic_api.verdict import verdict


def fault(study: Study) -> str | None:
    """Return why the first of all variants that is wrong can't be trained, or be judged; None if all can."""
    try:
        runs = study.all_runs({})
    except VariantError as error:
        return str(error)
    wanted = sorted(study.spec.objective.perplexity or ())
    return next((f"variant {run.variant}: {wrong}" for run in runs if (wrong := _fault_of(run, wanted))), None)


def _fault_of(run: Run, wanted: list[str]) -> str:
    """Return why a training can't be made or be judged by all categories that are wanted; "" if it can."""
    if problems := verdict(training_manifest(run.name, run.training)):
        return "; ".join(map(str, problems))
    there = held_out_categories(run.training)
    missing = next((category for category in wanted if category not in there), None)
    return "" if missing is None else _unjudged(run.training, missing, ", ".join(sorted(there)))


def _unjudged(training: Wire, category: str, there: str) -> str:
    """Return why there is no held-out text of a category, and what to write: else it would be known at the end."""
    if validation_sources(training):
        return (
            f"objective.perplexity: training.data.validation.sources has none of the category {category} (but of "
            f"{there}): write one there, or leave {category} out of the objective"
        )
    return (
        f"objective.perplexity: no stage draws from a source of the category {category}, so none of its text is held "
        f"out (but of {there}): give such a source a weight in a stage, write one into "
        f"training.data.validation.sources, in place of fraction, or leave {category} out of the objective"
    )
