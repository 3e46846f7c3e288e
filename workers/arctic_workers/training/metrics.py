"""The newest state of a training as `arctic_training_*` metrics. No torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from arctic_api.common import parse_duration
from arctic_api.training import Every
from arctic_api.world import TrainingWorld
from arctic_rpc.control_pb2 import ExposedCommunication, Phase, RouterState, WorkerState

PREFIX = "arctic_training_"

GAUGES = {
    "loss": "Mean cross-entropy of the last step's tokens over all ranks, in nats a token.",
    "learning_rate": "Learning rate of the last step.",
    "gradient_norm": "Global norm of the last step's gradient, before clipping.",
    "tokens_per_second": "Tokens trained on a second, over the last steps.",
    "mfu": "Model FLOPs utilization over the last steps, 0 to 1; 0 where the peak of the device is not known.",
}
COUNTERS = {
    "step": ("steps", "Optimizer updates of the run, over all attempts."),
    "tokens": ("tokens", "Tokens trained on, over all stages and attempts."),
    "checkpoint_stall_seconds": (
        "checkpoint_stall_seconds",
        "Time that rank 0 did not train because of checkpoints, in this attempt: copies to memory, and at the end of a "
        "stage the wait for the commit.",
    ),
    "skipped_updates": ("skipped_updates", "Updates that were left out, over all attempts."),
}
ROUTERS = {
    "entropy": "Mean entropy of a token's probabilities over that of even ones, 0 to 1.",
    "imbalance": "Load of the busiest expert over that of even routing.",
    "dead_experts": "Experts without a token for 100 steps.",
    "dropped": "Share of the choices of experts that were dropped, 0 to 1.",
}


class TrainingCollector:
    """Gives a registry what the newest state says; nothing before the first step is done."""

    def __init__(self, world: TrainingWorld, latest: Callable[[], WorkerState]) -> None:
        """`latest` returns the newest state of the world."""
        self._identity = {"namespace": world.namespace, "name": world.name}
        self._every = world.spec.checkpoint.every
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of now."""
        state = self._latest()
        yield InfoMetricFamily(
            f"{PREFIX}attempt",
            "What is trained, by which attempt, and what it does.",
            {
                **self._identity,
                "epoch": str(state.epoch),
                "stage": state.training.stage,
                "phase": Phase.Name(state.phase),
            },
        )
        yield _every(self._every)
        if state.training.step:
            yield from _training(state)


def _training(state: WorkerState) -> Iterator[Metric]:
    training = state.training
    for field, help_text in GAUGES.items():
        yield GaugeMetricFamily(f"{PREFIX}{field}", help_text, getattr(training, field))
    for field, (name, help_text) in COUNTERS.items():
        yield CounterMetricFamily(f"{PREFIX}{name}", help_text, getattr(training, field))
    yield GaugeMetricFamily(
        f"{PREFIX}last_checkpoint_step",
        "Step of the newest committed checkpoint; 0 while there is none.",
        training.last_checkpoint.step,
    )
    if training.HasField("last_checkpoint"):
        yield GaugeMetricFamily(
            f"{PREFIX}last_checkpoint_timestamp_seconds",
            "Time of the newest committed checkpoint.",
            training.last_checkpoint.time.ToSeconds(),
        )
    held_out = GaugeMetricFamily(
        f"{PREFIX}validation_loss",
        "Loss on held-out text of a stage's main category, at the stage's start and end.",
        labels=["stage", "moment"],
    )
    for stage in training.stages:
        if stage.HasField("initial_validation_loss"):
            held_out.add_metric([stage.name, "start"], stage.initial_validation_loss)
        if stage.HasField("validation_loss"):
            held_out.add_metric([stage.name, "end"], stage.validation_loss)
    yield held_out
    yield _by_label("loss_by_source", "Mean loss of a source's latest sequences.", "source", training.loss_by_source)
    parts = CounterMetricFamily(f"{PREFIX}seconds", "Time of the attempt by what it is spent on.", labels=["part"])
    for part, seconds in sorted(training.seconds.items()):
        parts.add_metric([part], seconds)
    yield parts
    yield from _routers(training.routers)
    if training.exposed_communication:
        yield _exposed(training.exposed_communication)


def _every(every: Every) -> Metric:
    if every.steps is not None:
        return GaugeMetricFamily(f"{PREFIX}checkpoint_every_steps", "Steps between two checkpoints.", every.steps)
    seconds = parse_duration(every.interval or "0s")
    return GaugeMetricFamily(f"{PREFIX}checkpoint_every_seconds", "Time between two checkpoints.", seconds)


def _by_label(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{name}", help_text, labels=[label])
    for value, figure in sorted(values.items()):
        family.add_metric([value], figure)
    return family


def _exposed(parts: Iterable[ExposedCommunication]) -> Metric:
    family = GaugeMetricFamily(
        f"{PREFIX}exposed_communication_ratio",
        "Share of the time that exchanges took which rank 0 could only wait for them, in the last step.",
        labels=["layer", "kind", "pass"],
    )
    for part in parts:
        ratio = min(1.0, part.exposed_seconds / part.in_flight_seconds) if part.in_flight_seconds else 0.0
        layered = part.HasField("layer")
        direction = ("backward" if part.backward else "forward") if layered else ""
        family.add_metric([str(part.layer) if layered else "", part.kind, direction], ratio)
    return family


def _routers(routers: Iterable[RouterState]) -> Iterator[Metric]:
    """Yield the health of each layer's router, and each expert's load."""
    families = {
        name: GaugeMetricFamily(f"{PREFIX}router_{name}", text, labels=["layer"]) for name, text in ROUTERS.items()
    }
    load = GaugeMetricFamily(
        f"{PREFIX}expert_load", "Share of a layer's choices that fell on an expert.", labels=["layer", "expert"]
    )
    for router in routers:
        layer = str(router.layer)
        families["entropy"].add_metric([layer], router.entropy)
        families["imbalance"].add_metric([layer], max(router.load, default=0.0) * len(router.load))
        families["dead_experts"].add_metric([layer], len(router.dead))
        families["dropped"].add_metric([layer], router.dropped)
        for expert, share in enumerate(router.load):
            load.add_metric([layer, str(expert)], share)
    yield from (*families.values(), load)
