"""`arctic evaluate`: asks a model, judges its answers, and writes results and a page."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from arctic_api.uris import path_of


@click.command()
@click.argument("model")
@click.option("--name", default=None, help="The model's name at the endpoint, and in the results.")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    required=True,
    metavar="NAME=PATH",
    help="A suite, and where its data are in the published format; several times for several suites.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder for answers, results.json and report.html [default: evaluation/NAME].",
)
@click.option("--samples", type=click.IntRange(1, 1000), default=1, show_default=True, help="Answers to each question.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of each question's first sample.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=4, show_default=True, help="Questions at once.")
@click.option(
    "--api",
    type=click.Choice(["chat", "completions"]),
    default=None,
    help="Whether questions go to the chat template [default: chat, for a folder only if it has a template].",
)
@click.option(
    "--compare",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of another evaluation, to be shown beside this one.",
)
def evaluate(
    model: str,
    name: str | None,
    suites: Sequence[str],
    output: Path | None,
    samples: int,
    temperature: float,
    seed: int,
    concurrency: int,
    api: str | None,
    compare: Sequence[Path],
) -> None:
    """Evaluate MODEL: a folder in the Hugging Face layout, a run's checkpoint, or an OpenAI API (http://host/v1).

    A second call with the same arguments goes on where the first was ended. An endpoint's key is read from
    OPENAI_API_KEY.
    """
    # Imported here: the other commands run where the extra `evaluation` is not installed.
    from arctic_workers.evaluation.endpoint import EndpointError, Sampling
    from arctic_workers.evaluation.model import Model, opened
    from arctic_workers.evaluation.records import MixedError
    from arctic_workers.evaluation.report import Evaluated, page
    from arctic_workers.evaluation.run import NAMES, Evaluation, evaluate_model
    from arctic_workers.evaluation.sandbox import Sandbox, SandboxError
    from arctic_workers.evaluation.serving import ModelError, ServingError
    from arctic_workers.evaluation.suites.form import DataError
    from arctic_workers.training.files import write_atomically

    data = _data(suites, NAMES)
    if samples > 1 and temperature == 0:
        raise click.UsageError("several samples take a --temperature above 0: answers are all alike there")
    name = name or _default_name(model)
    folder = output or Path("evaluation") / name.replace("/", "-")
    evaluation = Evaluation(name, data, Sampling(samples, temperature, seed), folder, concurrency)
    try:
        others = [Evaluated.read(each) for each in compare]
        with opened(Model(model, name, api, os.environ.get("OPENAI_API_KEY")), evaluation, click.echo) as endpoint:
            results = evaluate_model(evaluation, endpoint, cache(Sandbox), click.echo)
    except (
        *(DataError, SandboxError, EndpointError, ModelError, ServingError),
        *(MixedError, FileNotFoundError),
    ) as error:
        raise click.ClickException(str(error)) from error
    write_atomically(folder / "report.html", page([Evaluated.read(folder), *others]).encode())
    click.echo(_summary(results))
    click.echo(folder / "results.json")
    click.echo(folder / "report.html")


def _data(suites: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    found = {}
    for given in suites:
        suite, _, path = given.partition("=")
        if suite not in names or not path:
            raise click.UsageError(f"--suite {given}: write NAME=PATH, with one of {', '.join(names)} for the name")
        if suite in found:
            raise click.UsageError(f"--suite {given}: {suite} is there twice")
        found[suite] = Path(path_of(path))
        if not found[suite].exists():
            raise click.UsageError(f"--suite {given}: {found[suite]} is not there")
    return found


def _default_name(model: str) -> str:
    from arctic_workers.evaluation.model import is_url

    if is_url(model):
        raise click.UsageError("an endpoint may serve several models: say which with --name")
    folder = Path(model).resolve()
    return f"{folder.parents[1].name}-{folder.name}" if folder.parent.name == "checkpoints" else folder.name


def _summary(results: dict[str, Any]) -> str:
    found = results["enterprise intelligence"]
    if found["state"] == "done":
        return f"enterprise intelligence {found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"
    return f"enterprise intelligence: not run: {found['why']}"
