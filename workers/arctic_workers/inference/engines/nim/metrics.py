"""A NIM's own metrics: read, under our names for whoever scrapes us, and as rates for the operator.

The names are those of "Observability for NVIDIA NIM for LLMs" (1.x). Images of NIM 2.x carry vLLM, whose metrics have
the same names after `vllm:`, apart from two of its newer releases, or SGLang, of which nothing is read. A figure
that an image does not tell is left out, not zero.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from arctic_workers.inference.metrics import RATE_WINDOW, TTFT_WINDOW

_PREFIX = "vllm:"
_CACHE = ("gpu_cache_usage_perc", "kv_cache_usage_perc")
_PER_TOKEN = ("time_per_output_token_seconds", "inter_token_latency_seconds")
_FINISHED = ("request_finish_total", "request_success_total")
_OUTCOMES = {"stop": "stop", "length": "length", "abort": "cancelled", "cancelled": "cancelled"}


@dataclass(frozen=True)
class Distribution:
    """A histogram: how many values are at most each bound, by the bound as it was written, and the sum of all."""

    buckets: Mapping[str, float]
    sum: float


@dataclass(frozen=True)
class Figures:
    """What a NIM tells at one moment; None is what it does not tell."""

    running: float | None = None
    waiting: float | None = None
    cache: float | None = None
    """Share of the cache in use, 0 to 1."""
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    finished: Mapping[str, float] = field(default_factory=dict)
    """Requests that ended, by how."""
    ttft: Distribution | None = None
    per_token: Distribution | None = None
    e2e: Distribution | None = None

    @property
    def idle(self) -> bool:
        """Whether it says that no request is left."""
        return self.running == 0 and not self.waiting


def read(text: str) -> Figures:
    """Return what metrics in Prometheus' text format say; ValueError if they are none."""
    samples: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name.removeprefix(_PREFIX), []).append(sample)
    return Figures(
        running=_total(samples, "num_requests_running"),
        waiting=_total(samples, "num_requests_waiting"),
        cache=max((sample.value for name in _CACHE for sample in samples.get(name, ())), default=None),
        prompt_tokens=_total(samples, "prompt_tokens_total"),
        generated_tokens=_total(samples, "generation_tokens_total"),
        finished=_finished(samples),
        ttft=_distribution(samples, "time_to_first_token_seconds"),
        per_token=_distribution(samples, *_PER_TOKEN),
        e2e=_distribution(samples, "e2e_request_latency_seconds"),
    )


def _total(samples: Mapping[str, list[Sample]], name: str) -> float | None:
    """Return the sum over what labels tell apart: a NIM counts by model, and adapters are models to it."""
    return sum(sample.value for sample in samples[name]) if name in samples else None


def _finished(samples: Mapping[str, list[Sample]]) -> dict[str, float]:
    known = next((samples[name] for name in _FINISHED if name in samples), [])
    ended: dict[str, float] = {}
    for sample in [*known, *samples.get("request_failure_total", ())]:
        failed = sample.name.endswith("request_failure_total")
        outcome = "failed" if failed else _OUTCOMES.get(sample.labels.get("finished_reason", ""), "failed")
        ended[outcome] = ended.get(outcome, 0.0) + sample.value
    return ended


def _distribution(samples: Mapping[str, list[Sample]], *names: str) -> Distribution | None:
    name = next((name for name in names if f"{name}_bucket" in samples), None)
    if name is None:
        return None
    buckets: dict[str, float] = {}
    for sample in samples[f"{name}_bucket"]:
        buckets[sample.labels["le"]] = buckets.get(sample.labels["le"], 0.0) + sample.value
    ordered = dict(sorted(buckets.items(), key=lambda item: float(item[0])))
    return Distribution(ordered, _total(samples, f"{name}_sum") or 0.0)


class NimCollector(Collector):
    """Shows the newest figures under the names that every engine's metrics have."""

    def __init__(self, newest: Callable[[], Figures | None]) -> None:
        self._newest = newest

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        figures = self._newest()
        if figures is None:
            return
        yield from _gauges(figures)
        yield from _histograms(figures)
        yield from _counters(figures)


def _gauges(figures: Figures) -> Iterable[Metric]:
    for name, text, value in (
        ("requests_waiting", "Requests that wait for room.", figures.waiting),
        ("requests_running", "Requests that are being computed.", figures.running),
        ("kv_cache_utilization", "Share of the cache's blocks in use.", figures.cache),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"arctic_inference_{name}", text, value=value)


def _histograms(figures: Figures) -> Iterable[Metric]:
    for name, text, seen in (
        ("time_to_first_token_seconds", "From a request's arrival to its first token.", figures.ttft),
        ("time_per_output_token_seconds", "Between two tokens of a request.", figures.per_token),
        ("e2e_latency_seconds", "From a request's arrival to its last token.", figures.e2e),
    ):
        if seen is not None:
            yield HistogramMetricFamily(
                f"arctic_inference_{name}", text, buckets=list(seen.buckets.items()), sum_value=seen.sum
            )


def _counters(figures: Figures) -> Iterable[Metric]:
    for name, text, value in (
        ("prompt_tokens", "Tokens of prompts.", figures.prompt_tokens),
        ("generated_tokens", "Tokens generated.", figures.generated_tokens),
    ):
        if value is not None:
            yield CounterMetricFamily(f"arctic_inference_{name}", text, value=value)
    if figures.finished:
        requests = CounterMetricFamily("arctic_inference_requests", "Requests that ended, by how.", labels=["outcome"])
        for outcome, count in figures.finished.items():
            requests.add_metric([outcome], count)
        yield requests


class History:
    """The figures of the last minute, for rates."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, Figures]] = deque()

    def add(self, figures: Figures) -> bool:
        """Take figures of now; return whether counters went back, as those of a container that began anew do."""
        now = self._clock()
        anew = bool(self._seen) and (figures.generated_tokens or 0) < (self._seen[-1][1].generated_tokens or 0)
        if anew:
            self._seen.clear()
        self._seen.append((now, figures))
        while self._seen[0][0] < now - TTFT_WINDOW:
            self._seen.popleft()
        return anew

    def tokens_per_second(self) -> float:
        """Return the tokens generated a second of late."""
        return self._rate(lambda figures: figures.generated_tokens or 0.0)

    def requests_per_second(self) -> float:
        """Return the requests answered whole a second of late."""
        return self._rate(lambda f: f.finished.get("stop", 0.0) + f.finished.get("length", 0.0))

    def ttft_p99(self) -> float:
        """Return the 99th percentile of the last minute's times to the first token, in seconds; 0 without any."""
        if not self._seen:
            return 0.0
        before, now = self._seen[0][1].ttft, self._seen[-1][1].ttft
        if now is None:
            return 0.0
        known = before.buckets if before else {}
        return quantile({bound: count - known.get(bound, 0.0) for bound, count in now.buckets.items()}, 0.99)

    def _rate(self, value: Callable[[Figures], float]) -> float:
        if not self._seen:
            return 0.0
        newest, figures = self._seen[-1]
        oldest, before = next((when, seen) for when, seen in self._seen if when >= newest - RATE_WINDOW)
        return (value(figures) - value(before)) / (newest - oldest) if newest > oldest else 0.0


def quantile(buckets: Mapping[str, float], share: float) -> float:
    """Return the value that `share` of a histogram's values are at most, between two bounds in a straight line.

    As Prometheus' `histogram_quantile`: beyond the last finite bound it is that bound. 0 without any values.
    """
    bounds = sorted((float(bound), count) for bound, count in buckets.items())
    total = bounds[-1][1] if bounds else 0.0
    if not total:
        return 0.0
    rank, lower, below = share * total, 0.0, 0.0
    for bound, count in bounds:
        if bound == float("inf"):
            break
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
