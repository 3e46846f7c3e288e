"""Faults against the operator and the cluster under it: what must never be, and what does not come to its end.

On a local cluster of two nodes (which needs root) the operator runs as processes of this machine, with the settings and
rights of the chart's, behind a proxy of the API server. First it dies at every write that it makes, in the life of a
training (made, suspended, resumed, done) and of a service (made, rolled out, scaled up and down): each write is one
fault. Then a seeded campaign hits 20 objects, of which a training and a service are real ones and the others have
stand-ins in their pods: leader killed, Lease stolen, watches dropped, calls refused with 409, 429 and 500, held until
they time out, or done and not answered, any child deleted or edited, pods killed, components and kubelets restarted,
links cut, objects suspended, scaled, made anew, and rolled out and back. A checker that only watches the API looks once
a second. At the end all has to come to where its manifest says. The seed is in the first line.
"""

import base64
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from api_proxy import ApiProxy
from chaos import Campaign, Invariants, looking
from operator_process import NAME, OperatorProcess
from real_worlds import real_service, real_training
from stand_in import StandIns, placed

from arctic_cli.demo import install_operator
from arctic_cluster import Cluster
from arctic_cluster.errors import ClusterError
from arctic_cluster.manifests import SYSTEM_NAMESPACE, restricted_namespace
from benchmarks.form import arguments, finish, note

NAMESPACE, SEED = "chaos", 1
FAULTS, QUICK_FAULTS = 200, 20
WORLDS, QUICK_WORLDS = 17, 3
"""Trainings with stand-ins, beside one service of them; a real training and a real service make it 20."""
REAL = "real"
PATIENCE = 300.0
TROUBLE_SECONDS = 4.0
Step = tuple[Callable[[], object], Callable[[], bool]]


@contextmanager
def cluster_of_its_own() -> Iterator[StandIns]:
    """A cluster with the chart, whose own operator does not run."""
    cluster = Cluster("chaos")
    cluster.up(nodes=2)
    try:
        install_operator(cluster)
        cluster.kubectl("scale", "deployment", NAME, "-n", SYSTEM_NAMESPACE, "--replicas=0")
        cluster.apply([restricted_namespace(NAMESPACE)])
        cluster.create_claims(NAMESPACE)
        objects, pods = StandIns(cluster, NAMESPACE), ("pods", "-l", f"app.kubernetes.io/name={NAME}", "-o", "name")
        with placed(cluster):
            gone = "the chart's own operator, which would make what is to be made in other lives, is gone"
            objects.eventually(gone, lambda: not cluster.kubectl("get", *pods, "-n", SYSTEM_NAMESPACE))
            yield objects
    finally:
        cluster.down()


def proxy_of(cluster: Cluster) -> ApiProxy:
    """A proxy of a cluster's API server, not yet running."""
    [entry] = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"]
    authority = base64.b64decode(entry["cluster"]["certificate-authority-data"]).decode()
    return ApiProxy(entry["cluster"]["server"], authority, SEED)


# --- an operator that dies at every write


class Mortal:
    """Lives of one operator after the other, in each of which it makes one write."""

    def __init__(self, proxy: ApiProxy, operator: OperatorProcess) -> None:
        self._operator = operator
        self.deaths = 0
        proxy.when_written = self._die

    def _die(self) -> None:
        self.deaths += 1
        self._operator.kill()

    def until(self, arrived: Callable[[], bool]) -> bool:
        """Begin a life after the other until something is true; False if that takes too long."""
        end = time.monotonic() + PATIENCE
        while not _attempt(arrived):
            if not self._operator.runs:
                self._operator.start()
            if time.monotonic() > end:
                return False
            time.sleep(0.3)
        return True


def _attempt(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except ClusterError:
        return False


def life_of_a_training(objects: StandIns) -> list[Step]:
    """What happens to a training, each with what it comes to."""

    def suspend(suspended: bool) -> None:
        objects.change("arctictraining", "mortal", suspend=suspended)

    def is_(state: str) -> Callable[[], bool]:
        return lambda: objects.status("arctictraining", "mortal").get("state") == state

    return [
        (lambda: objects.train("mortal", {"SECONDS": "60"}), is_("Running")),
        (lambda: suspend(True), is_("Suspended")),
        (lambda: suspend(False), is_("Succeeded")),
    ]


def life_of_a_service(objects: StandIns) -> list[Step]:
    """What happens to a service, each with what it comes to."""

    def change(**spec: object) -> None:
        objects.change("arcticinference", "mortal", **spec)

    def has(replicas: int) -> bool:
        status = objects.status("arcticinference", "mortal")
        seen = objects.get("arcticinference", "mortal")["metadata"]["generation"]
        arrived = (status.get("state"), status.get("readyReplicas"), status.get("observedGeneration"))
        pods = objects.pods("mortal", "ArcticInference")
        return arrived == ("Ready", replicas, seen) and len(pods) == 2 * replicas

    return [
        (lambda: objects.serve("mortal", replicas=1), lambda: has(1)),
        (lambda: change(attention={"maxLength": 96}), lambda: has(1)),
        (lambda: change(replicas=2), lambda: has(2)),
        (lambda: change(replicas=1), lambda: has(1)),
    ]


def die_at_every_write(objects: StandIns, folder: Path) -> tuple[int, list[str], list[str]]:
    """Return how often an operator died, what was wrong meanwhile, and what did not come to its end."""
    proxy, invariants, unconverged = proxy_of(objects.cluster), Invariants(), []
    with proxy.running():
        operator = OperatorProcess(objects.cluster, proxy.url, folder, {"ARCTIC_POD_NAME": "mortal"})
        mortal = Mortal(proxy, operator)
        try:
            with looking(objects, invariants):
                for kind, life in (
                    ("training", life_of_a_training(objects)),
                    ("service", life_of_a_service(objects)),
                ):
                    for number, (act, arrived) in enumerate(life, 1):
                        before = mortal.deaths
                        act()
                        if not mortal.until(arrived):
                            unconverged.append(f"step {number} in the life of a {kind}")
                        note(f"{kind}, step {number}: died {mortal.deaths - before} times")
        finally:
            operator.end()
    objects.kubectl("delete", "arctic", "--all", "--wait=false")
    return mortal.deaths, invariants.violations, unconverged


# --- the campaign


class WholeCampaign(Campaign):
    """All faults, on two operators behind a proxy."""

    def __init__(self, objects: StandIns, proxy: ApiProxy, operators: list[OperatorProcess], worlds: int) -> None:
        super().__init__(objects, SEED, note, [f"world-{number}" for number in range(worlds)])
        self._proxy, self._operators = proxy, operators
        self._faults += [
            self._refuse_conflict,
            self._refuse_too_many,
            self._refuse_internal,
            self._hold,
            self._lose,
            self._drop_watches,
        ]
        real_training(objects, REAL)
        real_service(objects, f"{REAL}-service")

    def _wanted(self) -> list[tuple[str, Callable[[], bool]]]:
        real = [
            ("the real training succeeds", lambda: self._has_succeeded(REAL)),
            (
                "the real service is ready",
                lambda: self._objects.status("arcticinference", f"{REAL}-service").get("state") == "Ready",
            ),
        ]
        return super()._wanted() + real

    def _kill_the_operator(self) -> str:
        lease = self._cluster.kubectl(
            "get", "lease", NAME, "-n", SYSTEM_NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"
        )
        leader = self._operators[int(lease[-1]) if lease[-1:] in ("0", "1") else 0]
        leader.kill()
        leader.start()
        return "kill the leader"

    def _trouble(self, kind: int | str, share: float) -> str:
        self._proxy.trouble(kind, share, TROUBLE_SECONDS)
        return f"{kind} for {share:.0%} of the calls"

    def _refuse_conflict(self) -> str:
        return self._trouble(409, 0.5)

    def _refuse_too_many(self) -> str:
        return self._trouble(429, 0.7)

    def _refuse_internal(self) -> str:
        return self._trouble(500, 0.7)

    def _hold(self) -> str:
        return self._trouble("hold", 0.3)

    def _lose(self) -> str:
        return self._trouble("lose", 0.5)

    def _drop_watches(self) -> str:
        self._proxy.drop_watches()
        return "drop all watches"


def campaign(objects: StandIns, folder: Path, faults: int, worlds: int) -> tuple[int, list[str], list[str]]:
    """Return the number of faults, what was wrong meanwhile, and what did not come to its end."""
    proxy = proxy_of(objects.cluster)
    with proxy.running():
        operators = []
        for number in range(2):
            (place := folder / str(number)).mkdir()
            operators.append(OperatorProcess(objects.cluster, proxy.url, place, {"ARCTIC_POD_NAME": f"op-{number}"}))
        for operator in operators:
            operator.start()
        try:
            outcome = WholeCampaign(objects, proxy, operators, worlds).run(faults)
        finally:
            for operator in operators:
                operator.end()
    return outcome.faults, outcome.violations, outcome.unconverged


def main() -> None:
    """Run both, print what was seen, and the figures."""
    told = arguments(__doc__, f"{QUICK_FAULTS} faults on few objects")
    asked, worlds = (QUICK_FAULTS, QUICK_WORLDS) if told.quick else (FAULTS, WORLDS)
    note(f"seed {SEED}")
    with cluster_of_its_own() as objects, tempfile.TemporaryDirectory() as folder:
        deaths, violations, unconverged = die_at_every_write(objects, Path(folder))
        faults, bad, late = campaign(objects, Path(folder), asked, worlds)
    for line in (*violations, *bad):
        print(f"must not be: {line}")
    for line in (*unconverged, *late):
        print(f"did not come to its end: {line}")
    print(f"an operator died at each of {deaths} writes; {faults} faults came over {worlds + 3} objects")
    figures = {
        "faults": faults,
        "deaths": deaths,
        "violations": len(violations) + len(bad),
        "unconverged": len(unconverged) + len(late),
    }
    finish(told, figures, less_is_better=("violations", "unconverged"), unjudged=("faults", "deaths"))


if __name__ == "__main__":
    main()
