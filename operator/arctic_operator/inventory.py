"""What the custom resources' status says, as metrics: for alerts and dashboards. Read from memory when it is scraped.

Only the leader tells: a sum over all operators counts nothing twice. Names and namespaces are labels here, as they are
of kube-state-metrics; what a request may choose is none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from arctic_api import inference, training
from arctic_api.training import Restart
from arctic_operator.cache import Cache, Key, Manifest

PREFIX = "arctic_operator_"
UNSEEN = "Unseen"
"""State of an object that has no status yet."""
WAITING = "inference_waiting_requests"

Found = Iterator[tuple[tuple[str, ...], float]]
"""Values of the labels after `namespace` and `name`, and the figure."""


class _Figure(NamedTuple):
    name: str
    help: str
    of: Callable[[Manifest], Found]
    labels: tuple[str, ...] = ()


def _state(manifest: Manifest) -> Found:
    yield (manifest.get("status", {}).get("state") or UNSEEN,), 1.0


def _from_status(field: str) -> Callable[[Manifest], Found]:
    def found(manifest: Manifest) -> Found:
        yield (), manifest.get("status", {}).get(field) or 0

    return found


def _restart_limit(manifest: Manifest) -> Found:
    yield (), manifest["spec"].get("restart", {}).get("limit", Restart().limit)


def _last_end(manifest: Manifest) -> Found:
    for attempt in (manifest.get("status", {}).get("attempts") or ())[-1:]:
        yield (attempt["reason"],), datetime.fromisoformat(attempt["completionTime"]).timestamp()


FIGURES: Mapping[str, tuple[_Figure, ...]] = {
    training.KIND: (
        _Figure("training_info", "1 for each ArcticTraining, with its state.", _state, ("state",)),
        _Figure("training_restarts", "Failed attempts that count towards the limit.", _from_status("restarts")),
        _Figure("training_restart_limit", "Failed attempts that are followed by another.", _restart_limit),
        _Figure(
            "training_attempt_end_timestamp_seconds", "When the latest attempt ended, and why.", _last_end, ("reason",)
        ),
    ),
    inference.KIND: (
        _Figure("inference_info", "1 for each ArcticInference, with its state.", _state, ("state",)),
        _Figure("inference_replicas", "Groups that exist.", _from_status("replicas")),
        _Figure("inference_ready_replicas", "Groups that answer.", _from_status("readyReplicas")),
        _Figure("inference_desired_replicas", "Groups that are asked for.", _from_status("desiredReplicas")),
    ),
}


class Inventory(Collector):
    """Shows the objects of a cache while `leads` says that this operator leads.

    `waiting` is how many requests wait in the gateway of a service, None where it is not asked.
    """

    def __init__(self, cache: Cache, leads: Callable[[], bool], waiting: Callable[[Key], int | None]) -> None:
        self._cache, self._leads, self._waiting = cache, leads, waiting

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        objects: list[tuple[Key, Any]] = list(self._cache.customs()) if self._leads() else []
        for kind, figures in FIGURES.items():
            of_kind = [(key, manifest) for key, manifest in objects if key.kind == kind]
            for figure in figures:
                yield _family(figure, of_kind)
        yield self._waiting_requests([key for key, _ in objects if key.kind == inference.KIND])

    def _waiting_requests(self, services: Iterable[Key]) -> Metric:
        told = "Requests that wait in the gateway of a service with autoscaling, also while no group is ready."
        family = GaugeMetricFamily(PREFIX + WAITING, told, labels=["namespace", "name"])
        for key in services:
            if (waiting := self._waiting(key)) is not None:
                family.add_metric([key.namespace, key.name], waiting)
        return family


def _family(figure: _Figure, objects: list[tuple[Key, Manifest]]) -> Metric:
    family = GaugeMetricFamily(PREFIX + figure.name, figure.help, labels=["namespace", "name", *figure.labels])
    for key, manifest in objects:
        # A status is anybody's to edit who may: what can't be read of one object must not hide all others.
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            for more, value in figure.of(manifest):
                family.add_metric([key.namespace, key.name, *more], float(value))
    return family
