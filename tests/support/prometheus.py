"""A real Prometheus: what it makes of an expression, and what it scrapes of a local cluster by the chart's monitors."""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arctic_cluster import binaries
from arctic_workers.control.ports import LOOPBACK, free_ports

PATIENCE = 120.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`."""
    built = binaries.folder() / name
    assert built.exists(), f"{name} is missing: `make setup` builds it into {built.parent}"
    return str(built)


class Prometheus:
    """One that runs, by its API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._started = time.monotonic()

    def age(self) -> float:
        """Return the seconds that it has been running."""
        return time.monotonic() - self._started

    def parse(self, expr: str) -> dict[str, Any]:
        """Return the syntax tree of an expression; AssertionError with its own words if there is none."""
        tree: dict[str, Any] = self._ask("parse_query", expr)
        return tree

    def value(self, expr: str) -> float | None:
        """Return what an expression of one series is now; None if it has none."""
        found = self._ask("query", expr)["result"]
        return float(found[0]["value"][1]) if found else None

    def _ask(self, what: str, expr: str) -> Any:
        try:
            query = urllib.parse.urlencode({"query": expr})
            with _DIRECT.open(f"{self.url}/api/v1/{what}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {json.load(error)['error']}") from None

    def ready(self) -> bool:
        """Tell whether it answers."""
        try:
            with _DIRECT.open(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def running(folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run one on a free port, with its configuration and data in a folder."""
    (port,) = free_ports(1)
    file = folder / "prometheus.yaml"
    file.write_text(json.dumps(config))
    options = [
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={LOOPBACK}:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        process = subprocess.Popen([program("prometheus"), *options], stdout=log, stderr=log, env=environment)
    try:
        it, deadline = Prometheus(f"http://{LOOPBACK}:{port}"), time.monotonic() + PATIENCE
        while not it.ready():
            begins = process.poll() is None and time.monotonic() < deadline
            assert begins, (folder / "prometheus.log").read_text()
            time.sleep(0.05)
        yield it
    finally:
        process.terminate()
        process.wait()


Config = dict[str, Any]
_META = "__meta_kubernetes"


def scraping(kubeconfig: Path, objects: Iterable[Mapping[str, Any]], folder: Path, interval: str) -> Config:
    """Return a configuration that does what the chart's monitors and rules say, as the Prometheus operator would."""
    monitors = [each for each in objects if each["kind"] in ("PodMonitor", "ServiceMonitor")]
    (rules,) = (each for each in objects if each["kind"] == "PrometheusRule")
    file = folder / "rules.json"
    file.write_text(json.dumps({"groups": rules["spec"]["groups"]}))
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(file)],
        "scrape_configs": [_job(kubeconfig, monitor) for monitor in monitors],
    }


def _job(kubeconfig: Path, monitor: Mapping[str, Any]) -> Config:
    spec = monitor["spec"]
    of_pods = monitor["kind"] == "PodMonitor"
    (endpoint,) = spec["podMetricsEndpoints"] if of_pods else spec["endpoints"]
    role, kind = ("pod", "pod") if of_pods else ("endpoints", "service")
    port = f"{_META}_pod_container_port_name" if of_pods else f"{_META}_endpoint_port_name"
    keep = [
        _keep(f"{_META}_{kind}_label_{_plain(name)}", value) for name, value in spec["selector"]["matchLabels"].items()
    ]
    copied = {name: f"{_META}_pod_label_{_plain(name)}" for name in spec.get("podTargetLabels", ())}
    known = {"namespace": f"{_META}_namespace", "pod": f"{_META}_pod_name", "container": f"{_META}_pod_container_name"}
    return {
        "job_name": monitor["metadata"]["name"],
        "honor_labels": endpoint.get("honorLabels", False),
        "kubernetes_sd_configs": [{"role": role, "kubeconfig_file": str(kubeconfig)}],
        "relabel_configs": [
            *keep,
            _keep(port, endpoint["port"]),
            *(_copy(source, _plain(name)) for name, source in (known | copied | {"endpoint": port}).items()),
            *(_copy(rule["sourceLabels"][0], rule["targetLabel"]) for rule in endpoint.get("relabelings", ())),
        ],
    }


def _plain(label: str) -> str:
    return re.sub(r"\W", "_", label)


def _keep(label: str, value: str) -> Config:
    return {"action": "keep", "source_labels": [label], "regex": re.escape(value)}


def _copy(source: str, target: str) -> Config:
    return {"source_labels": [source], "target_label": target}
