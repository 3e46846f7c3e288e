"""A small world for plans of inference groups: it starts and stops their pods as kubelets do, with no clock."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from arctic_api.inference import ArcticInferenceStatus
from arctic_api.world import Label, Routing
from arctic_operator.live import InferenceObservation, Live, Phase
from arctic_operator.observed import (
    Access,
    GatewayDown,
    GroupSet,
    Inference,
    InferenceSeen,
    Node,
    Pod,
    read_status,
    revision_seen_of,
)
from arctic_operator.plan.actions import Mark, Plan, Remembered
from arctic_operator.plan.inference import plan_inference

NODES = 8
START_SECONDS = 7


class Cluster:
    """Controllers of group sets, kubelets and nodes: just what they do to the groups of one service."""

    def __init__(self, build: Any, inference: Inference) -> None:
        self.build, self.inference, self.settings = build, inference, build.settings
        self.now: datetime = build.start
        self.groups: dict[str, GroupSet] = {}
        self.pods: dict[tuple[str, int], Pod] = {}
        self.status: dict[str, Any] = {}
        self.nodes = {f"n{i}": Node(f"n{i}", True, build.start, False) for i in range(NODES)}
        self.sees_nodes = True
        self.busy: set[str] = set()
        self.broken: set[str] = set()
        self.told: set[str] = set()
        self.made: list[str] = []
        self.raw: dict[str, dict[str, Any]] = {}
        self.most = 0
        self.history: dict[str, dict[str, Any]] = {}
        self.remembered = Remembered()
        self.access: Access | None = None
        self.gateway_down: GatewayDown | None = None

    @property
    def serving(self) -> list[str]:
        """Groups whose leader gets requests and answers them."""
        return [name for name in self.groups if self.ready(name) and self.pods[name, 0].routing != "off"]

    def ready(self, name: str) -> bool:
        pods = [self.pods.get((name, index)) for index in range(self.groups[name].size)]
        return all(pod and pod.ready_since for pod in pods)

    def live(self, name: str) -> Live:
        running = int(name in self.busy)
        ready = self.ready(name)
        phase = Phase.RUNNING if ready else Phase.STARTING
        seen = InferenceObservation(
            "", phase, "", None, running=running, draining=name in self.told, loaded=1.0 if ready else 0.4
        )
        return Live(seen, self.now, connected=True)

    def reconcile(self) -> Plan:
        inference = replace(self.inference, status=read_status(ArcticInferenceStatus, self.status))
        live = {name: self.live(name) for name in self.groups}
        seen = InferenceSeen(
            tuple(self.groups.values()),
            tuple(self.pods.values()),
            self.nodes if self.sees_nodes else None,
            live,
            history=tuple(map(revision_seen_of, self.history.values())),
            access=self.access,
            gateway_down=self.gateway_down,
        )
        plan = plan_inference(inference, seen, self.settings, self.now, self.remembered)
        self.remembered = plan.remembered
        for manifest in plan.apply:
            if manifest["kind"] == "ControllerRevision":
                self.record(manifest)
        for manifest in plan.create:
            self.create(manifest)
        for mark in plan.mark:
            self.mark(mark)
        self.told.update(plan.drain)
        for delete in plan.delete:
            if delete.kind == "ControllerRevision":
                assert delete.uid == f"uid-{delete.name}"
                del self.history[delete.name]
            if delete.name in self.groups:
                group = self.groups[delete.name]
                assert (delete.kind, delete.uid) == (group.kind, group.uid)
                del self.groups[delete.name]
                self.pods = {key: pod for key, pod in self.pods.items() if key[0] != delete.name}
        self.status = plan.status or {}
        self.most = max(self.most, len(self.groups))
        return plan

    def record(self, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        assert name not in self.history, "what is recorded can't be changed"
        made = {"uid": f"uid-{name}", "creationTimestamp": self.now.isoformat()}
        self.history[name] = manifest | {"metadata": manifest["metadata"] | made}

    def create(self, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        assert name not in self.groups, "a group's name is in use"
        assert not any(group == name for group, _ in self.pods), "a pod has a name of that group"
        self.made.append(name)
        self.raw[name] = manifest | {
            "metadata": manifest["metadata"]
            | {"uid": f"uid-{name}-{len(self.made)}", "creationTimestamp": self.now.isoformat()}
        }
        self.groups[name] = self.build.group_set_of(self.raw[name])
        free = [node.name for node in self.nodes.values() if node.ready and not node.to_be_emptied]
        for index in range(self.groups[name].size):
            node = free[(len(self.made) + index) % len(free)] if free else ""
            routing = Routing(template_of(manifest)["metadata"]["labels"][Label.ROUTING])
            pod = self.build.pod(index, attempt=None, group=name, created=self.now, node=node, routing=routing)
            self.pods[name, index] = replace(pod, name=f"{name}-{index}", uid=f"{name}-{index}")

    def mark(self, mark: Mark) -> None:
        if mark.kind != "Pod":
            assert mark.kind == self.groups[mark.name].kind
            raw = self.raw[mark.name]
            metadata = raw["metadata"] | {"annotations": raw["metadata"]["annotations"] | mark.annotations}
            self.raw[mark.name] = raw | {"metadata": metadata}
            self.groups[mark.name] = self.build.group_set_of(self.raw[mark.name])
        for key, pod in self.pods.items():
            if mark.kind == "Pod" and pod.uid == mark.uid:
                self.pods[key] = replace(pod, routing=Routing(mark.labels[Label.ROUTING]))

    def tick(self, seconds: float = 1.0) -> None:
        self.now += timedelta(seconds=seconds)
        for key, pod in self.pods.items():
            up = self.now - pod.created >= timedelta(seconds=START_SECONDS) and key[0] not in self.broken
            node = self.nodes.get(pod.node)
            if up and pod.ready_since is None and node and node.ready:
                self.pods[key] = replace(pod, ready_since=self.now)
            if node and not node.ready:
                self.pods[key] = replace(pod, ready_since=None)

    def run(self, seconds: int, watch: "Callable[[Cluster], object] | None" = None, step: int = 1) -> None:
        for _ in range(0, seconds, step):
            self.tick(step)
            self.reconcile()
            if watch:
                watch(self)

    def edit(self, build: Any, generation: int, **fields: Any) -> None:
        self.inference = build.inference(generation=generation, **fields)

    def go_back(self, build: Any, generation: int, **fields: Any) -> None:
        """Edit to what makes the first revision again."""
        self.inference = replace(build.inference(**fields), generation=generation)


def template_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    template: dict[str, Any] = spec.get("template") or spec["leaderWorkerTemplate"]["workerTemplate"]
    return template
