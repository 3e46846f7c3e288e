"""Whether a canary is worse than the revision before it: statistics of what the leaders have counted, and no more.

Latencies are compared by their logarithms, which are much nearer to normal than they are: a difference of logarithms is
a ratio. The test is Welch's (B. L. Welch, Biometrika 34, 1947), its t turned into sigmas by Wallace's approximation
(D. L. Wallace, Annals of Mathematical Statistics 30, 1959). Shares of failed requests are compared by the interval of
Agresti and Caffo (The American Statistician 54, 2000), which adds a failure and a success to each side.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from arctic_operator.live import Figures, LogSums

WORSE = 4.0
"""Sigmas by which a canary that is rolled back is worse. Each look is a chance of a false alarm, and there are many."""
SURE = 2.33
"""Sigmas, 99% one-sided, by which it must be sure that a canary is not worse than allowed."""
LEAST = 30
"""Fewest requests of each side that latencies are judged by: means of fewer are not near enough to normal."""

Verdict = Literal["worse", "fine", "unsure", "few"]


@dataclass(frozen=True)
class Judged:
    """One measure of the canary against the stable revision's."""

    name: str
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class Difference:
    """How much higher the canary's is, with the standard error and its degrees of freedom."""

    value: float
    error: float
    freedom: float = math.inf

    def above(self, limit: float) -> float:
        """Return by how many sigmas the difference is above a limit."""
        distance = self.value - limit
        if self.error == 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return _sigmas(distance / self.error, self.freedom)


def _sigmas(t: float, freedom: float) -> float:
    """Return the normal deviate that is as improbable as Student's t."""
    if math.isinf(freedom):
        return t
    size = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.copysign(size, t)


def welch(new: LogSums, old: LogSums) -> Difference:
    """Return the difference of the means of logarithms; each side has two at least."""
    parts = [_variance(side) / side.count for side in (new, old)]
    error = math.sqrt(sum(parts))
    spread = sum(part**2 / (side.count - 1) for part, side in zip(parts, (new, old), strict=True))
    freedom = sum(parts) ** 2 / spread if spread else math.inf
    return Difference(new.sum / new.count - old.sum / old.count, error, freedom)


def _variance(side: LogSums) -> float:
    return max(0.0, (side.sum_of_squares - side.sum**2 / side.count) / (side.count - 1))


def agresti_caffo(new_failed: int, new_all: int, old_failed: int, old_all: int) -> Difference:
    """Return the difference of two shares."""
    shares = [(failed + 1) / (number + 2) for failed, number in ((new_failed, new_all), (old_failed, old_all))]
    numbers = (new_all + 2, old_all + 2)
    variance = sum(share * (1 - share) / number for share, number in zip(shares, numbers, strict=True))
    return Difference(shares[0] - shares[1], math.sqrt(variance))


def judge(new: Figures, old: Figures, latency_margin: float, error_margin: float) -> tuple[Judged, ...]:
    """Return the verdict on each measure. Margins are shares: of the latency, and of all requests."""
    return (
        _judge_errors(new, old, error_margin),
        _judge_latency("the time to the first token", new.ttft, old.ttft, latency_margin),
        _judge_latency("the time per token", new.per_token, old.per_token, latency_margin),
    )


def _judge_errors(new: Figures, old: Figures, margin: float) -> Judged:
    difference = agresti_caffo(new.failed, new.ended, old.failed, old.ended)
    said = f"{new.failed} of {new.ended} requests failed, of the stable revision's {old.failed} of {old.ended}"
    enough = min(new.ended, old.ended) >= LEAST
    return Judged("errors", _verdict(difference, margin, enough=enough), f"{said} ({_told(difference)})")


def _judge_latency(name: str, new: LogSums, old: LogSums, margin: float) -> Judged:
    if min(new.count, old.count) < LEAST:
        said = f"{name} is known of {new.count} requests, and of {old.count} of the stable revision, of {LEAST} each"
        return Judged(name, "few", said)
    difference = welch(new, old)
    said = f"{name} is {math.expm1(difference.value):+.1%} ({_told(difference)})"
    return Judged(name, _verdict(difference, math.log1p(margin), enough=True), said)


def _told(difference: Difference) -> str:
    return f"{difference.above(0):+.1f} sigma"


def _verdict(difference: Difference, margin: float, *, enough: bool) -> Verdict:
    """Worse is what is worse for certain, and by more than is allowed as far as one knows."""
    if difference.above(0) >= WORSE and difference.value > margin:
        return "worse"
    if not enough:
        return "few"
    return "fine" if -difference.above(margin) >= SURE else "unsure"


@dataclass(frozen=True)
class Comparison:
    """What two revisions have done since they serve beside each other, from what their leaders count.

    Leaders count since they have started, so what each said before is kept beside what it has added since.
    """

    revision: str = ""
    """The canary's."""
    share: int = 0
    """Percent of the requests that go to the canary: with another one other minutes weigh more, and it begins anew."""
    new: Figures = field(default_factory=Figures)
    old: Figures = field(default_factory=Figures)
    latest: dict[str, Figures] = field(default_factory=dict)
    """What each group's leader has said last."""

    def with_figures(self, said: dict[str, Figures], canaries: frozenset[str]) -> "Comparison":
        """Return it with what the leaders say now; `canaries` names the groups of the newest revision.

        What a leader counted before it was seen first belongs to nobody: the other side had not been watched then.
        """
        new, old = self.new, self.old
        for group, figures in said.items():
            added = figures.since(self.latest[group]) if group in self.latest else Figures()
            if group in canaries:
                new = new.plus(added)
            else:
                old = old.plus(added)
        return Comparison(self.revision, self.share, new, old, {**self.latest, **said})
