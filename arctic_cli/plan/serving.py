"""What an ArcticInference takes on a device, and what to change where it doesn't fit."""

from collections.abc import Callable
from dataclasses import replace

import click

from arctic_api.common import parse_duration
from arctic_api.inference import ArcticInferenceSpec, Attention
from arctic_api.verdict import verdict
from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest, Models
from arctic_cli.plan.choice import CPU, Choice, brings_no_problem
from arctic_cli.plan.serving_report import Report
from arctic_model.config import ArcticConfig
from arctic_model.planning.advice import Fields, advise, layouts
from arctic_model.planning.costs import Costs
from arctic_model.planning.decoding import Decoding, best_layout
from arctic_model.planning.devices import DEVICES, Device
from arctic_model.planning.serving import Serving, ServingPlan, plan_serving
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.window import Window


def report_serving(manifest: Manifest, models: Models, choice: Choice, price: float | None) -> Report:
    """Plan what an ArcticInference asks for. Raises ManifestError where it can't be."""
    spec = ArcticInferenceSpec.model_validate(manifest.content["spec"])
    if spec.engine.name == "nim":
        raise ManifestError(
            f"{manifest.file}: spec.engine.name: what nim loads is its container's, and can't be planned"
        )
    config, source = choice.model() or _served(manifest, spec, models)
    device = choice.device(CPU if spec.engine.name == "native" else "h100")
    costs = choice.costs() if device.bf16_flops is None else None
    return _report(manifest, spec, config, device, source, price, costs)


def _served(manifest: Manifest, spec: ArcticInferenceSpec, models: Models) -> tuple[ArcticConfig, str]:
    try:
        return models.find(spec.model, manifest.namespace, spec.template)
    except (ValueError, click.ClickException) as error:
        words = error.message if isinstance(error, click.ClickException) else str(error)
        others = "or name the model by --preset, by --config, or by its ArcticTraining with another -f"
        raise ManifestError(f"{manifest.file}: spec.model: {words}; {others}") from None


def _report(
    manifest: Manifest,
    spec: ArcticInferenceSpec,
    config: ArcticConfig,
    device: Device,
    source: str,
    price: float | None,
    costs: Costs | None,
) -> Report:
    try:
        on_gpus = device.bf16_flops is not None
        asked = replace(serving_of(spec, config), shares_all=on_gpus and spec.engine.name == "vllm")
        plan = plan_serving(asked, device)
    except ValueError as error:
        raise ManifestError(f"{manifest.file}: spec: {error}") from None
    latency = spec.batching.target_inter_token_latency
    target = None if latency is None else parse_duration(latency)
    refused = verdict(manifest.content)

    def allowed(fields: Fields) -> bool:
        if spec.engine.name == "native" and fields.get("parallelism.tensor", 1) != 1:
            return False  # it has no more memory then
        return brings_no_problem(manifest, fields, refused)

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
        price=price,
        costs=costs.serving if costs is not None and measured(plan.serving, spec.engine.name) else None,
        target=target,
        best=None if target is None else _best(plan, target, allowed),
    )


def measured(serving: Serving, engine: str) -> bool:
    """Whether costs that are measured are those of such a group."""
    return engine == "native" and (serving.weights, serving.kv_cache, serving.pipeline) == ("fp8", "bf16", 1)


def _best(plan: ServingPlan, target: float, allowed: Callable[[Fields], bool]) -> tuple[ServingPlan, Decoding] | None:
    candidates = (candidate for fields, candidate in layouts(plan.serving, plan.device) if allowed(fields))
    plans = (plan_serving(candidate, plan.device) for candidate in candidates)
    return best_layout(plans, plan.serving.max_length, target)


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
