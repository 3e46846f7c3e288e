"""Changes of a service, and of what is under it, while OpenAI's client asks on and tries nothing again: does any fail?

On a local cluster of three nodes (which needs root) a small random Arctic is served by two groups of two pods each,
with the native engine, FP8 weights and real streams. A client in the network of a node asks the service's own address
eight times a second; an answer counts as failed, too, if it breaks off or says something else than the others. Each
change comes after a steady minute: a rollout; a canary with half of the requests, and its rollback; from two groups to
one, and back; to none and back by autoscaling, for which the load pauses until no group is left, and then goes on; a
node that is drained; the operator killed, and killed again when a rollout has made its first group. A change is over
when the status says Ready for it and nothing of what was before is left. Latencies are of whole answers of 16 tokens,
as the client sees them. Last, what the gateway costs: answers of one token by way of it and straight from a leader, one
at a time, in alternation, while nobody else asks.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
from kept_asking import PATIENCE, RealService, kill_the_operator, node_of, until_another_leads
from objects import eventually, is_ready
from steady_load import Asked, SteadyLoad

from arctic_api.world import Ports
from arctic_cluster import shell
from arctic_cluster.config import inside
from arctic_operator.manifests.gateway import HTTP_PORT
from benchmarks.form import arguments, finish, note, print_table
from benchmarks.on_a_cluster import three_nodes
from benchmarks.reconciling.race import quantile

GROUPS = 2
PACE = 8.0
"""Requests a second."""
LATEST = 120.0
"""Seconds after which a request counts as failed."""
STEADY, QUICK_STEADY = 60.0, 10.0
CANARY_SECONDS = 20.0
"""That a canary gets requests before it is taken back."""
HOPS = 300
"""Requests by each way."""


@dataclass(frozen=True)
class Span:
    """A time, on the monotonic clock."""

    begin: float
    end: float

    def of(self, asked: Sequence[Asked]) -> list[Asked]:
        """Return the requests that were open in it."""
        return [each for each in asked if each.began < self.end and each.ended > self.begin]


@dataclass(frozen=True)
class Changed:
    """One change, and the steady time before it."""

    name: str
    before: Span
    span: Span


class Changes:
    """What is done to a service, each until it is over. The load goes on all the while."""

    def __init__(self, service: RealService, load: SteadyLoad) -> None:
        self._service, self._load = service, load
        self.canary_answers = 0
        """Requests that a canary was given."""
        self.all: dict[str, Callable[[], None]] = {
            "rollout": self._roll_out,
            "canary and rollback": self._canary_and_back,
            "two groups to one": self._scale_down,
            "one group to two": self._scale_up,
            "to zero and back": self._to_zero_and_back,
            "node drained": self._drain_a_node,
            "operator killed": self._kill_the_operator,
            "operator killed in a rollout": self._kill_the_operator_in_a_rollout,
        }

    def _roll_out(self) -> None:
        self._service.change(attention={"maxLength": 192})
        self._service.until_at_rest(GROUPS)

    def _canary_and_back(self) -> None:
        self._service.change(attention={"maxLength": 224}, rollout={"canary": {"weight": "50%"}})
        self._service.until_state("Canary")
        eventually("requests to the canary", lambda: answers_of(self._service, "canary") > 0, PATIENCE)
        time.sleep(CANARY_SECONDS)
        self.canary_answers = answers_of(self._service, "canary")
        self._service.change(attention={"maxLength": 192}, rollout={"canary": None})
        self._service.until_at_rest(GROUPS)

    def _scale_down(self) -> None:
        self._service.change(replicas=1)
        self._service.until_at_rest(1)

    def _scale_up(self) -> None:
        self._service.change(replicas=GROUPS)
        self._service.until_at_rest(GROUPS)

    def _to_zero_and_back(self) -> None:
        scaling = {"min": 0, "max": GROUPS, "target": {"queuedPerReplica": 4}, "scaleToZeroAfter": "30s"}
        self._service.change(autoscaling=scaling)
        self._service.until_at_rest(GROUPS)
        self._load.pause()
        try:
            self._service.until_state("Idle")
        finally:
            self._load.resume()
        self._service.until_state("Ready")
        self._service.change(autoscaling=None)
        self._service.until_at_rest(GROUPS)

    def _drain_a_node(self) -> None:
        # Of its pods: a leader, and whatever else has come to lie there.
        node = node_of(self._service.pods[0])
        kubectl = self._service.cluster.kubectl
        kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={PATIENCE:.0f}s")
        try:
            self._service.until_at_rest(GROUPS)
        finally:
            kubectl("uncordon", node)

    def _kill_the_operator(self) -> None:
        killed = kill_the_operator(self._service.cluster)
        until_another_leads(self._service.cluster, killed)
        self._service.until_at_rest(GROUPS)

    def _kill_the_operator_in_a_rollout(self) -> None:
        before = self._service.groups
        self._service.change(attention={"maxLength": 208})
        eventually("a group of the new revision", lambda: self._service.groups - before, PATIENCE)
        self._kill_the_operator()


def answers_of(service: RealService, backend: str) -> int:
    """Return how many requests the gateway has given to one of its backends."""
    name = f'haproxy_backend_http_responses_total{{proxy="{backend}",code="2xx"}} '
    texts = [
        httpx.get(f"http://{pod['status']['podIP']}:{Ports().metrics}/metrics", trust_env=False).text
        for pod in service.gateways
        if is_ready(pod)
    ]
    lines = [line for text in texts for line in text.splitlines() if line.startswith(name)]
    return sum(int(line.removeprefix(name)) for line in lines)


def measure(service: RealService, steady: float) -> tuple[list[Changed], list[Asked], int]:
    """Make all changes under load; return them with all requests, and those that the canary was given."""
    changed = []
    with service.asked(PACE, LATEST) as load:
        changes = Changes(service, load)
        for name, change in changes.all.items():
            before = Span(time.monotonic(), time.monotonic() + steady)
            time.sleep(steady)
            change()
            changed.append(Changed(name, before, Span(before.end, time.monotonic())))
            tell(changed[-1], load.asked())
        time.sleep(steady)
    return changed, load.asked(), changes.canary_answers


def tell(change: Changed, asked: Sequence[Asked]) -> None:
    """Note how a change went, with what failed in it."""
    mine = change.span.of(asked)
    failed = [each for each in mine if each.failed]
    note(f"{change.name}: {change.span.end - change.span.begin:.1f} s, {len(mine)} requests, {len(failed)} failed")
    for each in failed:
        note(f"  after {each.began - change.span.begin:.1f} s, in {each.seconds:.2f} s: {each.failed}")


def wrong(asked: Sequence[Asked]) -> list[Asked]:
    """Return the requests that failed, and those whose answer is not what most of their kind were told."""
    found = [each for each in asked if each.failed]
    for long in (False, True):
        answered = [each for each in asked if each.long is long and not each.failed]
        texts = [each.text for each in answered]
        usual = max(set(texts), key=texts.count, default="")
        found += [each for each in answered if each.text != usual]
    return found


def hop_seconds(service: RealService, requests: int) -> float:
    """Return what a request costs by way of the gateway beyond what it costs at a leader, in seconds."""
    leader, gateway = service.pods[0], service.gateways[0]
    urls = [
        f"http://{leader['status']['podIP']}:{Ports().http}",
        f"http://{gateway['status']['podIP']}:{HTTP_PORT}",
    ]
    script = Path(__file__).with_name("gateway_hop.py")
    words = [sys.executable, str(script), service.NAME, str(requests), *urls]
    straight, by_gateway = json.loads(shell.run(*inside(service.cluster.nodes[0]), *words))
    note(f"an answer of one token: {1e3 * straight:.2f} ms from a leader, {1e3 * by_gateway:.2f} ms by the gateway")
    return float(by_gateway - straight)


def row(change: Changed, asked: Sequence[Asked], bad: Sequence[Asked]) -> tuple[object, ...]:
    """Return what the table says of a change."""
    mine = change.span.of(asked)
    latencies = [[each.seconds for each in span.of(asked) if not each.long] for span in (change.before, change.span)]
    (p50, p99), (steady_p50, steady_p99) = ((median(each), quantile(each, 0.99)) for each in reversed(latencies))
    seconds = change.span.end - change.span.begin
    figures = [f"{1e3 * value:.1f}" for value in (steady_p50, p50, steady_p99, p99)]
    return change.name, f"{seconds:.1f}", len(mine), sum(each in bad for each in mine), *figures


def main() -> None:
    """Make the changes, print, and keep."""
    told = arguments(__doc__, f"steady times of {QUICK_STEADY:.0f} s instead of {STEADY:.0f}")
    with three_nodes("rollout") as objects:
        service = RealService(objects, GROUPS)
        changed, asked, to_canary = measure(service, QUICK_STEADY if told.quick else STEADY)
        hop = hop_seconds(service, HOPS)
    bad = wrong(asked)
    print_table(
        f"{len(asked):,} requests, {PACE:.0f} a second; the canary was given {to_canary}; milliseconds of an answer",
        ("change", "seconds", "requests", "failed", "p50 before", "p50", "p99 before", "p99"),
        [row(change, asked, bad) for change in changed],
    )
    figures = {"requests": len(asked), "failed": len(bad), "gateway_ms": 1e3 * hop}
    finish(told, figures, less_is_better=("failed", "gateway_ms"), unjudged=("requests",))


if __name__ == "__main__":
    main()
