"""`arctic extend`: a larger budget for a stage, judged as the training's workers will judge it."""

from typing import Any

import click

from arctic_api.common import parse_tokens
from arctic_api.training import KIND, ArcticTrainingSpec
from arctic_cli.on_cluster import Manifest, OnCluster, refuse_ended


def larger_budget(manifest: Manifest, stage: str, tokens: str) -> list[dict[str, Any]]:
    """Return the JSON patch that gives a stage a larger budget, or raise ClickException with why it can't have it.

    Args:
        manifest: of the training, with its status.
        stage: name of the stage.
        tokens: its budget from now on, as in `spec.curriculum.stages[].tokens`.
    """
    status, stages = manifest.get("status", {}), manifest["spec"]["curriculum"]["stages"]
    index = next((index for index, each in enumerate(stages) if each["name"] == stage), None)
    if index is None:
        names = ", ".join(each["name"] for each in stages)
        raise click.ClickException(f"there is no stage {stage!r}: spec.curriculum.stages has {names}")
    refuse_ended(manifest)
    budget = stages[index]["tokens"]
    if _tokens(tokens) <= parse_tokens(budget):
        raise click.ClickException(f"stage {stage} has {budget} tokens: write more, as {tokens} is its whole budget")
    place = f"/spec/curriculum/stages/{index}"
    patch = [
        {"op": "test", "path": f"{place}/name", "value": stage},
        {"op": "test", "path": f"{place}/tokens", "value": budget},
        {"op": "replace", "path": f"{place}/tokens", "value": tokens},
    ]
    changed = [*stages[:index], stages[index] | {"tokens": tokens}, *stages[index + 1 :]]
    _refuse_what_workers_do(manifest["spec"], {"stages": changed}, status.get("step", 0))
    return patch


def _tokens(text: str) -> int:
    try:
        return parse_tokens(text)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _refuse_what_workers_do(spec: Manifest, curriculum: Manifest, step: int) -> None:
    """Ask the workers' own judgement on the manifest under which they would go on from that step."""
    from arctic_workers.training.curriculum import Curriculum
    from arctic_workers.training.errors import Refused
    from arctic_workers.training.trained import check_same, trained_with

    before = ArcticTrainingSpec.model_validate(spec)
    after = ArcticTrainingSpec.model_validate(spec | {"curriculum": curriculum})
    now = Curriculum.plan(before)
    kept = trained_with(before.seed, [stage for stage in now.stages if stage.first_step < step], now.share)
    try:
        check_same(kept if step else {}, after.seed, Curriculum.plan(after), step)
    except Refused as error:
        raise click.ClickException(f"the workers would refuse it: {error}") from error


@click.command()
@click.argument("name")
@click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's].")
@click.option("--stage", required=True, help="The stage: one that is under way, or to come.")
@click.option("--tokens", required=True, help="Its whole budget from now on, such as 1.5G.")
def extend(name: str, namespace: str | None, stage: str, tokens: str) -> None:
    """Give a stage of a training a larger budget: a new attempt goes on from a checkpoint."""
    cluster = OnCluster(namespace)
    cluster.patch(KIND, name, larger_budget(cluster.get(KIND, name), stage, tokens))
    click.echo(f"{name}: stage {stage} has {tokens} tokens: the next attempt goes on from a checkpoint of now")
