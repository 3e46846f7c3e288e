"""The metrics that our components export, by running each, and what an expression reads of them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gateways import run_gateway
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from small_specs import TRAINING_SPEC

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import TrainingWorld
from arctic_operator import inventory
from arctic_operator import metrics as operator_metrics
from arctic_rpc.control_pb2 import RUNNING, RouterState, StageState, TrainingState, WorkerState
from arctic_workers.control.expiry import CertificateExpiry
from arctic_workers.inference.engine import Stats
from arctic_workers.inference.metrics import Metrics
from arctic_workers.training.metrics import TrainingCollector

Exported = dict[str, frozenset[str]]
"""Names of labels by the name of a series."""

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def exported(folder: Path, tls_folder: Path) -> Exported:
    """Return what all components export; `tls_folder` holds the certificate of `team/tiny`."""
    world = _world(tls_folder)
    training, inference = CollectorRegistry(), CollectorRegistry()
    ProcessCollector(registry=training)
    training.register(CertificateExpiry(world))
    for every in ({"steps": 5}, {"interval": "5s"}):
        training.register(TrainingCollector(_world(tls_folder, **every), _state))
    Metrics(inference, Stats)
    return _operator() | _shown(training) | _shown(inference) | _gateway(folder)


def _world(tls_folder: Path, **every: Any) -> TrainingWorld:
    spec = TRAINING_SPEC | {"checkpoint": TRAINING_SPEC["checkpoint"] | ({"every": every} if every else {})}
    return TrainingWorld(
        namespace="team",
        name="tiny",
        uid="1e5e7e0c-0000-4000-8000-000000000000",
        first_host="127.0.0.1",
        tls_folder=str(tls_folder),
        spec=ArcticTrainingSpec.model_validate(spec),
        attempt=1,
        epoch=1,
        run_folder="/store/team/tiny-1e5e7",
    )


def _state() -> WorkerState:
    training = TrainingState(step=1, stages=[StageState(name="one", initial_validation_loss=7.0)])
    training.last_checkpoint.time.FromSeconds(1)
    training.loss_by_source["books"] = 2.0
    training.seconds["compute"] = 1.0
    training.routers.append(RouterState(layer=1, load=[1.0]))
    training.exposed_communication.add(layer=1, kind="combine", in_flight_seconds=1)
    return WorkerState(phase=RUNNING, training=training)


def _operator() -> Exported:
    found = _shown(operator_metrics.REGISTRY)
    for metric in vars(operator_metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            for suffix in SUFFIXES[family.type]:
                more = {"le"} if suffix == "_bucket" else set()
                found[family.name + suffix] = frozenset(metric._labelnames) | more
    for figures in inventory.FIGURES.values():
        for figure in figures:
            found[inventory.PREFIX + figure.name] = frozenset({"namespace", "name", *figure.labels})
    found[inventory.PREFIX + inventory.WAITING] = frozenset({"namespace", "name"})
    return found


def _gateway(folder: Path) -> Exported:
    with run_gateway(folder, leaders=1) as gateway:
        return _of_text(gateway.metrics())


def _shown(registry: CollectorRegistry) -> Exported:
    return _of_text(generate_latest(registry).decode())


def _of_text(text: str) -> Exported:
    found: Exported = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | frozenset(sample.labels)
    return found


def target_labels(monitor: Mapping[str, Any]) -> frozenset[str]:
    """Return the labels that a PodMonitor or ServiceMonitor gives to what it scrapes."""
    spec = monitor["spec"]
    copied = {re.sub(r"\W", "_", label) for label in spec.get("podTargetLabels", ())}
    endpoints = spec.get("podMetricsEndpoints") or spec["endpoints"]
    made = {rule["targetLabel"] for endpoint in endpoints for rule in endpoint.get("relabelings", ())}
    return frozenset({"namespace", "pod", "container", "endpoint", "job", "instance"} | copied | made)


class UnknownMetricError(Exception):
    """An expression reads what nobody exports."""


def labels_of(node: Mapping[str, Any], known: Exported) -> frozenset[str]:
    """Return the labels that an expression's series may have, by its syntax tree; UnknownMetricError for others."""
    match node["type"]:
        case "vectorSelector" | "matrixSelector":
            return _selected(node, known)
        case "aggregation":
            return _aggregated(node, known)
        case "binaryExpr":
            return _combined(node, known)
        case "call":
            return _called(node, known)
        case "parenExpr" | "unaryExpr" | "subquery":
            return labels_of(node["expr"], known)
    assert node["type"] in ("numberLiteral", "stringLiteral"), node["type"]
    return frozenset()


def _selected(node: Mapping[str, Any], known: Exported) -> frozenset[str]:
    if node["name"] not in known:
        raise UnknownMetricError(f"nobody exports {node['name']}")
    labels = known[node["name"]]
    _demand({matcher["name"] for matcher in node["matchers"]} - {"__name__"}, labels, node["name"])
    return labels


def _demand(asked: set[str], labels: frozenset[str], of: str) -> None:
    if not asked <= labels:
        raise UnknownMetricError(
            f"{of} has no label {', '.join(sorted(asked - labels))}: it has {', '.join(sorted(labels))}"
        )


def _aggregated(node: Mapping[str, Any], known: Exported) -> frozenset[str]:
    labels, grouping = labels_of(node["expr"], known), frozenset(node["grouping"] or ())
    _demand(set(grouping), labels, f"what {node['op']} is taken of")
    if node["op"] in ("topk", "bottomk"):
        return labels
    return labels - grouping if node["without"] else grouping


def _combined(node: Mapping[str, Any], known: Exported) -> frozenset[str]:
    left, right = labels_of(node["lhs"], known), labels_of(node["rhs"], known)
    matching = node.get("matching") or {}
    if matching.get("on"):
        for side, name in ((left, "the left side"), (right, "the right side")):
            _demand(set(matching["labels"]), side, f"{name} of {node['op']}")
    return left | right if node["op"] == "or" or not left else left


def _called(node: Mapping[str, Any], known: Exported) -> frozenset[str]:
    labels = frozenset[str]().union(*(labels_of(each, known) for each in node["args"]))
    name = node["func"]["name"]
    if name in ("label_join", "label_replace"):
        return labels | {node["args"][1]["val"]}
    if name == "histogram_quantile":
        _demand({"le"}, labels, "what histogram_quantile is taken of")
        return labels - {"le"}
    return labels


def expressions_in(page: str) -> Iterator[str]:
    """Yield the names of metrics, with the labels that follow them, in a text."""
    yield from re.findall(r"\b(?:arctic|haproxy|process)_[a-z_:]+(?:\{[^}`]*\})?(?![\w/.-])", page)
