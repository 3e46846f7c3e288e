"""What is wrong with an ablation's trainings, before any of them starts."""

from arctic_ablation.study import Study
from arctic_ablation.variants import VariantError, training_manifest
from arctic_api.verdict import verdict


def fault(study: Study) -> str | None:
    """Return why the first of all variants that is wrong can't be trained; None if all can."""
    try:
        runs = study.all_runs({})
    except VariantError as error:
        return str(error)
    for run in runs:
        if problems := verdict(training_manifest(run.name, run.training)):
            return f"variant {run.variant}: " + "; ".join(map(str, problems))
    return None
