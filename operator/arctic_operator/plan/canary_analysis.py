"""What becomes of a canary that is analysed: pure, over what the leaders of both revisions have counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from arctic_api.common import parse_duration, parse_percent
from arctic_api.inference import CanaryAnalysis, CanaryStatus
from arctic_operator.live import InferenceObservation
from arctic_operator.observed import GroupSet, Inference, InferenceSeen, format_time, parse_time
from arctic_operator.plan.canary import Canary, decision_on
from arctic_operator.plan.comparison import Comparison, Judged, judge


@dataclass(frozen=True)
class Analysed:
    """What the status says of an analysis."""

    status: CanaryStatus
    reason: str
    """Of the condition."""

    @property
    def passed(self) -> bool | None:
        """Whether the canary may take over; None while that is not known."""
        return {"Promoted": True, "RolledBack": False}.get(self.status.verdict)


class ServingView(Protocol):
    """What an analysis needs of a group."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def set(self) -> GroupSet: ...  # noqa: D102
    @property
    def lost(self) -> bool: ...  # noqa: D102
    @property
    def draining(self) -> bool: ...  # noqa: D102
    def settled(self, now: datetime) -> bool: ...  # noqa: D102


def analyse(
    inference: Inference,
    revision: str,
    canary: Canary | None,
    groups: Sequence[ServingView],
    seen: InferenceSeen,
    comparison: Comparison,
    now: datetime,
) -> tuple[Analysed | None, Comparison]:
    """Return what is known of the newest revision, and what to remember; None where nothing is analysed."""
    asked, known = inference.spec.rollout.canary, decision_on(inference, revision)
    if asked is None or asked.analysis is None:
        return None, Comparison()
    if canary is None:
        decided = known if known and known.verdict != "Analyzing" else None
        return (Analysed(decided, decided.verdict) if decided else None), Comparison()
    serving = [group for group in groups if group.settled(now) and not group.lost and not group.draining]
    newest = frozenset(group.name for group in serving if group.set.revision == revision)
    stable = frozenset(group.name for group in serving if group.set.revision == canary.stable.name)
    said = {name: told.figures for name in newest | stable if (told := _heard(seen, name))}
    begun = parse_time(known.since) if known else None
    begun = begun if begun and begun <= now else None  # clocks are set back
    if (comparison.revision, comparison.share) != (revision, canary.share):
        begun = None if comparison.revision == revision else begun
        comparison = Comparison(revision, canary.share)
    if not newest & said.keys() or not stable & said.keys():
        # What one side does while the other does nothing is no comparison.
        status = _status(revision, begun, "Analyzing", "waits until groups of both revisions serve and are heard")
        return Analysed(status, "Waiting"), replace(comparison, latest={})
    comparison = comparison.with_figures(said, newest)
    return _decided(asked.analysis, comparison, begun or now, now), comparison


def _heard(seen: InferenceSeen, group: str) -> InferenceObservation | None:
    live = seen.live.get(group)
    told = live.observation if live and live.connected else None
    return told if isinstance(told, InferenceObservation) else None


def _decided(analysis: CanaryAnalysis, comparison: Comparison, since: datetime, now: datetime) -> Analysed:
    margin = analysis.margin
    latency, errors = parse_percent(margin.latency), parse_percent(margin.errors)
    judged = judge(comparison.new, comparison.old, latency, errors)
    worse = [each for each in judged if each.verdict == "worse"]
    if worse:
        return Analysed(_status(comparison.revision, since, "RolledBack", _sentences(worse)), "RolledBack")
    over = now - since >= timedelta(seconds=parse_duration(analysis.duration))
    undecided = [each for each in judged if each.verdict != "fine"]
    if over and not undecided:
        return Analysed(_status(comparison.revision, since, "Promoted", _sentences(judged)), "Promoted")
    few = any(each.verdict == "few" for each in undecided)
    reason = "Comparing" if not over else "TooFewRequests" if few else "NotSure"
    return Analysed(_status(comparison.revision, since, "Analyzing", _sentences(judged)), reason)


def _sentences(judged: Sequence[Judged]) -> str:
    return "; ".join(each.sentence for each in judged)


def _status(revision: str, since: datetime | None, verdict: str, message: str) -> CanaryStatus:
    told = {"revision": revision, "since": since and format_time(since), "verdict": verdict, "message": message}
    return CanaryStatus.model_validate(told)
