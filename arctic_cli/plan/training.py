"""What an ArcticTraining takes on a device, and what to change where it doesn't fit."""

import click

from arctic_api.training import ArcticTrainingSpec
from arctic_api.verdict import verdict
from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest, Models
from arctic_cli.plan.choice import CPU, Choice, brings_no_problem
from arctic_cli.plan.training_report import Report
from arctic_model.config import ArcticConfig
from arctic_model.planning.costs import Costs
from arctic_model.planning.devices import Device
from arctic_model.planning.training import TrainingPlan, plan_training, shared_by
from arctic_model.planning.training_advice import Fields, advise
from arctic_model.planning.training_time import RankStep, seconds
from arctic_workers.training.extent import training_of


def report_training(manifest: Manifest, models: Models, choice: Choice, mfu: float, price: float | None) -> Report:
    """Plan what an ArcticTraining asks for. Raises ManifestError where it can't be."""
    spec = ArcticTrainingSpec.model_validate(manifest.content["spec"])
    config, source = choice.model() or _trained(manifest, models)
    on_gpus = spec.resources is not None and spec.resources.gpus > 0
    device = _of_a_rank(choice.device("h100" if on_gpus else CPU), spec, manifest)
    try:
        training = training_of(spec, config, on_cpu=device.bf16_flops is None)
        plan = plan_training(training, device)
    except ValueError as error:
        raise ManifestError(f"{manifest.file}: spec: {error}") from None
    given, refused = spec.price_per_gpu_hour, verdict(manifest.content)

    def allowed(fields: Fields) -> bool:
        return brings_no_problem(manifest, fields, refused)

    return Report(
        name=manifest.name,
        source=source,
        plan=plan,
        predicted=_predicted(plan, choice.costs()),
        asked_mfu=mfu,
        price=price if price is not None or given is None else float(given),
        changes=[] if plan.fits else advise(training, device, allowed),
        refused=[str(problem) for problem in refused],
    )


def _predicted(plan: TrainingPlan, costs: Costs | None) -> list[float] | None:
    """Seconds of a step by stage, where costs are known: of one rank that trains all of a model on a CPU."""
    training = plan.training
    if costs is None or training.world > 1 or training.compute != "fp32" or any(plan.recomputed):
        return None
    if training.frozen or training.fp8:
        return None
    return [
        seconds(
            RankStep(
                training.config,
                training.degrees(stage).gradient_accumulation,
                training.micro_batch_size,
                stage.sequence_length,
            ),
            costs.training,
        )
        for stage in training.stages
    ]


def _of_a_rank(device: Device, spec: ArcticTrainingSpec, manifest: Manifest) -> Device:
    """Return what one rank has: a GPU, or its share of a machine."""
    ranks = spec.parallelism.processes_per_node
    if device.bf16_flops is None:
        return shared_by(device, ranks)
    if ranks > device.per_node:
        raise ManifestError(
            f"{manifest.file}: spec.parallelism.processesPerNode is {ranks} and a node has {device.per_node} x "
            f"{device.title}: write at most that, or --devices-per-node"
        )
    return device


def _trained(manifest: Manifest, models: Models) -> tuple[ArcticConfig, str]:
    try:
        return models.of_training(manifest)
    except (ValueError, click.ClickException) as error:
        words = error.message if isinstance(error, click.ClickException) else str(error)
        raise ManifestError(
            f"{manifest.file}: spec.model: {words}; or name the model by --preset or --config"
        ) from None
