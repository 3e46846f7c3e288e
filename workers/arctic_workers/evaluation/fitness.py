"""A judge judges itself first: on this machine, its own gold answers have to be right, and idle ones wrong."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from arctic_workers.evaluation.suites.form import DataError, Probe, Suite
from arctic_workers.evaluation.verdict import Verdict

_MOST_NAMED = 5


@dataclass(frozen=True)
class Fitness:
    """What became of a suite's probes."""

    shares: Mapping[str, float]
    """Of each kind of probe, the share that was judged right: 1 for gold, 0 for others."""
    problem: str
    """Why the suite is unfit here; "" where it is fit."""


def fitness(suite: Suite, workers: int) -> Fitness:
    """Judge all of a suite's probes, several at once."""

    def judged(probe: Probe) -> Verdict:
        return suite.judge(probe.question, probe.answer)

    probes = list(suite.probes())
    try:
        with ThreadPoolExecutor(workers) as pool:
            verdicts = list(pool.map(judged, probes))
    except DataError as error:
        return Fitness({}, str(error))
    right = Counter(probe.kind for probe, verdict in zip(probes, verdicts, strict=True) if verdict.passed)
    of = Counter(probe.kind for probe in probes)
    wrong = [
        f"{probe.kind} answer of {probe.question}: {verdict.kind} {verdict.message}".strip()
        for probe, verdict in zip(probes, verdicts, strict=True)
        if verdict.passed != probe.passes
    ]
    problem = "; ".join(wrong[:_MOST_NAMED]) + (
        f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    )
    return Fitness({kind: right[kind] / count for kind, count in of.items()}, problem)
