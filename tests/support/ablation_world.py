"""An API server with controllers of trainings and Jobs, for plans of ablations: the operator keeps nothing."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from arctic_ablation.study import VariantStudy
from arctic_ablation.swarm.study import SwarmStudy
from arctic_ablation.variants import total_tokens
from arctic_api.ablation import ArcticAblationSpec, ArcticAblationStatus
from arctic_api.ablation_pod import AblationReport, AblationWorld
from arctic_api.common import parse_tokens
from arctic_operator.observed import Identity, Node, Owner, Pod, job_of
from arctic_operator.plan.ablation import plan_ablation
from arctic_operator.plan.actions import Plan
from arctic_operator.settings import Settings
from arctic_operator.trials import Ablation, AblationSeen, judgement_of, trial_of

IDENTITY = Identity("ArcticAblation", "team", "rates", "0a1b2c3d-0000-4000-8000-000000000009")
SETTINGS = Settings(namespace="arctic", worker_image="worker:1", gateway_image="gateway:1")
START = datetime(2026, 1, 1, tzinfo=UTC)
Manifest = dict[str, Any]
STORE = "file:///var/lib/arctic/store"
HOURS_A_TOKEN = 1e-5
"""GPU hours that a token takes."""


def _reported(_: AblationWorld) -> AblationReport:
    return AblationReport(outcome="succeeded")


class World:
    """What the operator wrote is all that there is.

    Args:
        ablation: its specification.
        loss: of a training, by its specification and the tokens that it has.
        do: what the pod of a Job does.
    """

    def __init__(
        self,
        ablation: ArcticAblationSpec,
        loss: Callable[[Manifest, int], float],
        do: Callable[[AblationWorld], AblationReport] = _reported,
    ) -> None:
        self._loss, self._do = loss, do
        self.generation, self.seconds = 0, 0.0
        self.status: Manifest = {}
        self.trainings: dict[str, Manifest] = {}
        self.evaluations: dict[str, Manifest] = {}
        self.jobs: dict[str, Manifest] = {}
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] | None = None
        self.earlier = ArcticAblationStatus()
        self.best: Manifest = {}
        self.jobs_made = 0
        self.edit(ablation)

    def edit(self, ablation: ArcticAblationSpec) -> None:
        """Apply another specification."""
        self.spec, self.generation = ablation, self.generation + 1

    @property
    def now(self) -> datetime:
        """The time."""
        return START + timedelta(seconds=self.seconds)

    def visit(self) -> Plan:
        """Let an operator that knows nothing look at it, and do what it plans."""
        self.seconds += 1
        status = ArcticAblationStatus.model_validate(copy.deepcopy(self.status))
        ablation = Ablation(IDENTITY, self.generation, False, self._study(status), status)
        seen = AblationSeen(
            trials={name: trial_of(each) for name, each in self.trainings.items()},
            judgements={name: judgement_of(each) for name, each in self.evaluations.items()},
            earlier=self.earlier,
            jobs=[job_of(job) for job in self.jobs.values()],
            pods=list(self.pods.values()),
            nodes=self.nodes,
        )
        plan = plan_ablation(ablation, seen, SETTINGS, self.now)
        for manifest in plan.apply:
            self._apply(manifest)
        for manifest in plan.create:
            self._create(manifest)
        for delete in plan.delete:
            kinds = {"Job": self.jobs, "ArcticTraining": self.trainings, "ArcticEvaluation": self.evaluations}
            del kinds[delete.kind][delete.name]
        if plan.status is not None:
            self.status = plan.status
        return plan

    def _study(self, status: ArcticAblationStatus) -> VariantStudy | SwarmStudy:
        if self.spec.mixture is None:
            return VariantStudy(IDENTITY.name, self.spec)
        study = SwarmStudy(IDENTITY.name, self.spec, told={})
        study.hear({each.name: each.mixtures for each in status.foretold or () if each.digest == study.digest})
        return study

    def _apply(self, manifest: Manifest) -> None:
        if manifest["kind"] == "ConfigMap":
            self.best = json.loads(manifest["data"]["training.json"])
        elif manifest["kind"] == "ArcticTraining":
            name = manifest["metadata"]["name"]
            known = self.trainings.get(name, {"metadata": {"uid": name}, "status": {}})
            metadata = manifest["metadata"] | known["metadata"] | {"name": name}
            self.trainings[name] = manifest | {"metadata": metadata, "status": known["status"]}
        elif manifest["kind"] == "ArcticEvaluation":
            name = manifest["metadata"]["name"]
            assert name not in self.evaluations, "it is made once"
            self.evaluations[name] = manifest | {"metadata": manifest["metadata"] | {"uid": name}, "status": {}}

    def _create(self, manifest: Manifest) -> None:
        name, self.jobs_made = manifest["metadata"]["name"], self.jobs_made + 1
        assert name not in self.jobs
        uid = f"job-{self.jobs_made}"
        metadata = manifest["metadata"] | {"uid": uid, "creationTimestamp": self.now.isoformat()}
        self.jobs[name] = manifest | {"metadata": metadata}
        self.pods[uid] = Pod(
            f"{name}-0", f"pod-{uid}", 0, "Running", self.now, owner=Owner("Job", name, uid), node="n0"
        )

    def told(self) -> AblationWorld:
        """What the pod of the last Job was told."""
        *_, job = self.jobs.values()
        [container] = job["spec"]["template"]["spec"]["containers"]
        variables = {item["name"]: item.get("value") for item in container["env"]}
        return AblationWorld.model_validate_json(variables["ARCTIC_WORLD"])

    def pod(self) -> Pod:
        """The pod of the last Job that there is."""
        *_, job = self.jobs.values()
        return self.pods[job["metadata"]["uid"]]

    def end(self, code: int = 0, report: AblationReport | None = None) -> None:
        """Let that pod do what it is for, or end with another code and report."""
        word = (report or self._do(self.told())).model_dump_json(by_alias=True)
        phase, pod = "Failed" if code else "Succeeded", self.pod()
        self.pods[pod.uid.removeprefix("pod-")] = replace(pod, phase=phase, exit_code=code, exit_message=word)

    def running(self) -> list[str]:
        """Trainings that are not where they may go."""
        return [name for name, each in self.trainings.items() if each["status"].get("tokens", 0) < _goal(each)]

    def train(self, name: str) -> None:
        """Let a training come to where it may go."""
        training, goal = self.trainings[name], _goal(self.trainings[name])
        [category, *_] = self.spec.objective.perplexity or ("general",)
        uri = f"{STORE}/{name}/checkpoints/{goal}"
        training["status"] = {
            "lastCheckpoint": {"step": 1, "tokens": goal, "uri": uri, "time": "2026-01-01T00:00:00Z"},
            "state": "Suspended" if goal < total_tokens(training["spec"]) else "Succeeded",
            "tokens": goal,
            "gpuHours": f"{goal * HOURS_A_TOKEN:.3f}",
            "evaluation": {f"perplexity/{category}": f"{math.exp(self._loss(training['spec'], goal)):.4f}"},
        }

    def waiting(self) -> list[str]:
        """Evaluations that have not ended."""
        return [name for name, each in self.evaluations.items() if not each["status"]]

    def judge(self, name: str, **lacking: str) -> None:
        """Let an evaluation end: the figure is the higher the less the loss; `lacking` says why suites have none."""
        spec = self.evaluations[name]["spec"]
        trial = spec["model"].get("training") or spec["model"]["uri"].removeprefix(f"{STORE}/").partition("/")[0]
        training = self.trainings[trial]
        score = f"{1 - self._loss(training['spec'], training['status']['tokens']) / 10:.4f}"
        figures = [
            {"name": "own", "value": score, "interval": "0 to 1"},
            {"name": "other", "value": "7", "interval": "0 to 9"},
        ]
        suites = [
            {"name": suite["name"], "state": "Unfit", "message": lacking[suite["name"]]}
            if suite["name"] in lacking
            else {"name": suite["name"], "state": "Done", "figures": figures}
            for suite in spec["suites"]
        ]
        self.evaluations[name]["status"] = {"suites": suites, "conditions": [_condition("Succeeded")]}

    def refuse(self, name: str, why: str) -> None:
        """Let an evaluation fail."""
        self.evaluations[name]["status"] = {"conditions": [_condition("Failed", why)]}

    def live(self, choose: Callable[[list[str]], list[str]] = list, until: Callable[[], bool] = bool) -> None:
        """Let time pass until the ablation has ended, or something is so; `choose` says who trains on."""
        for _ in range(500):
            self.visit()
            if self.status["state"] in ("Succeeded", "Failed") or until():
                return
            running = self.running()
            assert len(running) <= self.spec.parallelism, "no more trainings at a time than may be"
            for name in choose(running):
                self.train(name)
            for name in self.waiting():
                self.judge(name)
            if self.jobs and not self.pod().ended:
                self.end()
        raise AssertionError("it has not ended")

    def condition(self, kind: str) -> Manifest:
        """A condition of the status."""
        found: Manifest = next(each for each in self.status["conditions"] if each["type"] == kind)
        return found


def _condition(kind: str, message: str = "") -> Manifest:
    when = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": "True", "reason": "Ended", "message": message, "lastTransitionTime": when}


def _goal(training: Manifest) -> int:
    return min(parse_tokens(training["spec"]["suspendAt"]), total_tokens(training["spec"]))
