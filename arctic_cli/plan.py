"""`arctic plan`: whether what a manifest asks for fits on a device, and what to change. Reads files, starts nothing."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from arctic_api.inference import ArcticInferenceSpec, Attention
from arctic_api.verdict import verdict
from arctic_cli.local import volumes_option
from arctic_cli.machine import this_machine
from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest, Models, read_manifests
from arctic_cli.plan_report import Report, render_json, render_table
from arctic_cluster.paths import default_volumes
from arctic_model.config import PRESETS, ArcticConfig, read_json
from arctic_model.planning.advice import Fields, advise
from arctic_model.planning.devices import DEVICES, Device
from arctic_model.planning.serving import Serving, ServingPlan, plan_serving
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.window import Window

CPU = "cpu"
_DOES_NOT_FIT = 1


@click.command()
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Manifest of an ArcticInference; another may be that of the ArcticTraining whose export it serves.",
)
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="The model, instead of the one that is served.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="config.json of the model, instead of the one that is served.",
)
@click.option(
    "--device",
    "device_name",
    type=click.Choice([*DEVICES, CPU]),
    help="What it runs on; cpu is this machine as it is now [default: cpu for the native engine, else h100].",
)
@click.option("--devices-per-node", type=click.IntRange(1, 64), help="GPUs of a node [default: 8].")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="table is for people.")
@volumes_option
def plan(
    files: tuple[Path, ...],
    preset: str | None,
    config_file: Path | None,
    device_name: str | None,
    devices_per_node: int | None,
    output: str,
    volumes: Path | None,
) -> None:
    """Say what an ArcticInference takes on a device; exit 1 where it doesn't fit, with what to change."""
    manifest = _one_inference(files)
    spec = ArcticInferenceSpec.model_validate(manifest.content["spec"])
    if spec.engine.name == "nim":
        raise ManifestError(
            f"{manifest.file}: spec.engine.name: what nim loads is its container's, and can't be planned"
        )
    if preset and config_file:
        raise ManifestError("--preset and --config both name the model: write one of them")
    if preset:
        config, source = ArcticConfig.preset(preset), f"preset {preset}"
    elif config_file:
        config, source = _from_file(config_file), str(config_file)
    else:
        models = Models(read_manifests(files, "ArcticTraining"), volumes or default_volumes())
        config, source = _served(manifest, spec, models)
    device = _device(device_name or (CPU if spec.engine.name == "native" else "h100"), devices_per_node)
    report = _report(manifest, spec, config, device, source)
    click.echo(render_json(report) if output == "json" else render_table(report))
    if not report.plan.fits:
        raise SystemExit(_DOES_NOT_FIT)


def _one_inference(files: tuple[Path, ...]) -> Manifest:
    found = read_manifests(files, "ArcticInference")
    if len(found) != 1:
        names = ", ".join(map(str, files))
        raise ManifestError(f"{names}: has {len(found)} manifests of the kind ArcticInference: write exactly one")
    return found[0]


def _from_file(file: Path) -> ArcticConfig:
    try:
        return ArcticConfig.from_dict(read_json(file), str(file))
    except ValueError as error:
        raise ManifestError(str(error)) from None


def _served(manifest: Manifest, spec: ArcticInferenceSpec, models: Models) -> tuple[ArcticConfig, str]:
    try:
        return models.find(spec.model, manifest.namespace, spec.template)
    except (ValueError, click.ClickException) as error:
        words = error.message if isinstance(error, click.ClickException) else str(error)
        others = "or name the model by --preset, by --config, or by its ArcticTraining with another -f"
        raise ManifestError(f"{manifest.file}: spec.model: {words}; {others}") from None


def _device(name: str, per_node: int | None) -> Device:
    if name == CPU:
        if per_node is not None:
            raise ManifestError("--devices-per-node is for GPUs: this machine is one device")
        return this_machine()
    return DEVICES[name] if per_node is None else replace(DEVICES[name], per_node=per_node)


def _report(manifest: Manifest, spec: ArcticInferenceSpec, config: ArcticConfig, device: Device, source: str) -> Report:
    try:
        plan = plan_serving(serving_of(spec, config), device)
    except ValueError as error:
        raise ManifestError(f"{manifest.file}: spec: {error}") from None
    refused = verdict(manifest.content)

    def allowed(fields: Fields) -> bool:
        if spec.engine.name == "native" and fields.get("parallelism.tensor", 1) != 1:
            return False  # it has no more memory then
        return set(verdict(_written(manifest.content, fields))) <= set(refused)

    return Report(
        name=manifest.name,
        engine=spec.engine.name,
        source=source,
        replicas=spec.replicas,
        tensor=spec.parallelism.tensor,
        plan=plan,
        others=_on_other_devices(plan),
        changes=[] if plan.fits else advise(plan, allowed),
        refused=[str(problem) for problem in refused],
    )


def serving_of(spec: ArcticInferenceSpec, config: ArcticConfig) -> Serving:
    """Return what a manifest asks of one group. Raises ValueError where the model does not reach as far.

    Tensor ranks of the native engine are shares of one machine, and so of one device.
    """
    window = _window(spec.attention, config)
    visible = None if window is None else window.reach
    native = spec.engine.name == "native"
    step_room = window.blocks(BLOCK_SIZE) * BLOCK_SIZE - window.reach if window is not None and native else 0
    return Serving(
        config=config,
        weights=spec.quantization.weights,
        kv_cache=spec.quantization.kv_cache,
        kv_scaled=native,
        compute="fp32" if native else "bf16",
        tensor=1 if native else spec.parallelism.tensor,
        pipeline=spec.parallelism.pipeline,
        max_length=_max_length(spec.attention, config, visible, step_room),
        visible=visible,
        step_room=step_room,
        token_budget=spec.batching.token_budget,
        max_sequences=spec.batching.max_sequences,
        memory_fraction=spec.batching.kv_cache.memory_fraction,
    )


def _window(attention: Attention, config: ArcticConfig) -> Window | None:
    size = attention.window or config.sliding_window
    return None if size is None else Window(size, attention.sinks)


def _max_length(attention: Attention, config: ArcticConfig, visible: int | None, step_room: int) -> int:
    if attention.max_length == "unlimited":
        if visible is None:
            raise ValueError(
                "attention.maxLength is unlimited, and without a window keys and values have no bound; "
                "write attention.window, or a number of tokens"
            )
        return visible + step_room  # no request takes more
    scaling = attention.rope_scaling
    positions = int(config.max_position_embeddings * (scaling.factor if scaling else 1))
    if visible is not None and visible <= positions:
        return attention.max_length
    # The default gives way to a model with fewer positions, as it does in the engines.
    if attention.max_length > positions and attention.max_length != Attention().max_length:
        raise ValueError(
            f"attention.maxLength is {attention.max_length} and the model has {positions} positions; "
            f"write at most {positions}, or attention.ropeScaling"
        )
    return min(attention.max_length, positions)


def _on_other_devices(plan: ServingPlan) -> dict[str, ServingPlan]:
    """Return the plans of the same group on the table's other devices, if it is for one of them."""
    if plan.device.bf16_flops is None:
        return {}
    others = {name: replace(device, per_node=plan.device.per_node) for name, device in DEVICES.items()}
    return {name: plan_serving(plan.serving, other) for name, other in others.items() if other != plan.device}


def _written(manifest: dict[str, Any], fields: Fields) -> dict[str, Any]:
    """Return a copy of a manifest with fields of its specification written."""
    content = copy.deepcopy(manifest)
    for path, value in fields.items():
        *steps, last = path.split(".")
        node = content["spec"]
        for step in steps:
            node = node.setdefault(step, {})
        node[last] = value
    return content
