"""What a leader measures: Prometheus metrics, and the rates of the last moments for the operator."""

import math
import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from arctic_workers.inference.engine import Stats

TTFT_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_E2E = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
RATE_WINDOW = 10.0
"""Seconds over which rates are taken."""
TTFT_WINDOW = 60.0
"""Seconds over which the TTFT's percentile is taken."""


class Recent:
    """Values of the last so many seconds."""

    def __init__(self, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.window = window
        self._clock = clock
        self._entries: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Take a value of now."""
        now = self._clock()
        self._entries.append((now, value))
        self._sum += value
        self._forget(now)

    def values(self) -> list[float]:
        """Return those that are young enough."""
        self._forget(self._clock())
        return [value for _, value in self._entries]

    def rate(self) -> float:
        """Return their sum a second."""
        self._forget(self._clock())
        return self._sum / self.window

    def _forget(self, now: float) -> None:
        """Each value is taken and forgotten once, so that a token costs the same however many came before it."""
        oldest = now - self.window
        while self._entries and self._entries[0][0] < oldest:
            self._sum -= self._entries.popleft()[1]
        if not self._entries:
            self._sum = 0.0  # what rounding has left


class LogSums:
    """Sums of logarithms of seconds: of any two moments they give mean and variance of what came between."""

    def __init__(self) -> None:
        self.count, self.sum, self.sum_of_squares = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        """Take a time; clocks have a grain, below which none is."""
        log = math.log(max(seconds, 1e-6))
        self.count += 1
        self.sum += log
        self.sum_of_squares += log * log


class Metrics:
    """Metrics of one leader; `stats` tells what the engine is doing now."""

    def __init__(self, registry: CollectorRegistry, stats: Callable[[], Stats]) -> None:
        self.registry = registry

        def gauge(name: str, text: str, value: Callable[[Stats], float]) -> None:
            Gauge(f"arctic_inference_{name}", text, registry=registry).set_function(lambda: value(stats()))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"arctic_inference_{name}", text, registry=registry, buckets=buckets)

        gauge("requests_waiting", "Requests that are still being read, or wait for room.", lambda now: now.waiting)
        gauge("requests_running", "Requests that are being computed, or answered still.", lambda now: now.running)
        gauge("kv_cache_utilization", "Share of the cache's blocks in use.", lambda now: now.kv_cache_utilization)
        gauge(
            "lost_blocks",
            "Blocks of the cache that were taken back since nobody gave them back: 0 unless the engine has a fault.",
            lambda now: now.lost_blocks,
        )
        gauge("loaded_ratio", "Share of the leader's weights in memory.", lambda now: now.loaded)
        self._ttft = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", TTFT_BOUNDS
        )
        self._per_token = histogram("time_per_output_token_seconds", "Between two tokens of a request.", _PER_TOKEN)
        self._e2e = histogram("e2e_latency_seconds", "From a request's arrival to its last token.", _E2E)
        self._requests = Counter(
            "arctic_inference_requests", "Requests that ended, by how.", ["outcome"], registry=registry
        )
        for outcome in ("stop", "length", "cancelled", "failed"):
            self._requests.labels(outcome)
        self._prompt = Counter(
            "arctic_inference_prompt_tokens",
            "Tokens of prompts: one with several answers (n) counts with each of them.",
            registry=registry,
        )
        self._generated = Counter("arctic_inference_generated_tokens", "Tokens generated.", registry=registry)
        self.recent_tokens = Recent(RATE_WINDOW)
        self.recent_requests = Recent(RATE_WINDOW)
        self._recent_ttft = Recent(TTFT_WINDOW)
        self.ended = self.failed = 0
        self.ttft_logs, self.per_token_logs = LogSums(), LogSums()

    def ttft_p99(self) -> float:
        """Return the 99th percentile of the last minute's times to the first token, in seconds; 0 without any."""
        values = sorted(self._recent_ttft.values())
        return values[min(int(len(values) * 0.99), len(values) - 1)] if values else 0.0

    def request(self, prompt_tokens: int) -> "RequestTimer":
        """Begin to time a request."""
        self._prompt.inc(prompt_tokens)
        return RequestTimer(self)

    def first_token(self, seconds: float) -> None:
        """Take the time to a first token."""
        self.ttft_logs.add(seconds)
        self._ttft.observe(seconds)
        self._recent_ttft.add(seconds)
        self._count_token()

    def next_token(self, seconds: float) -> None:
        """Take the time between two tokens."""
        self._per_token.observe(seconds)
        self._count_token()

    def _count_token(self) -> None:
        self._generated.inc()
        self.recent_tokens.add(1)

    def end(self, outcome: str, seconds: float) -> None:
        """Take the end of a request; only those that were answered whole count for latency and rate."""
        self._requests.labels(outcome).inc()
        self.ended += outcome != "cancelled"
        self.failed += outcome == "failed"
        if outcome in ("stop", "length"):
            self._e2e.observe(seconds)
            self.recent_requests.add(1)


class RequestTimer:
    """The times of one request, from now on: moments of `time.monotonic`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.begin = time.monotonic()
        self.turn: float | None = None
        """When its turn came, of engines that tell; known with the first token."""
        self.first: float | None = None
        self.latest: float | None = None
        self.later_tokens = 0
        self.outcome = ""
        """How it ended, once it has."""

    def token(self, made: float | None, turn: float | None = None) -> None:
        """A token has come; engines may tell when it was made, and with the first when the request's turn was."""
        moment = time.monotonic() if made is None else made
        if self.first is None or self.latest is None:
            self.turn, self.first = turn, moment
            self._metrics.first_token(moment - self.begin)
        else:
            self.later_tokens += 1
            self._metrics.next_token(moment - self.latest)
        self.latest = moment

    def end(self, outcome: str) -> None:
        """The request has ended."""
        self.outcome = outcome
        if outcome in ("stop", "length") and self.later_tokens and self.first is not None and self.latest is not None:
            # One value a request: those of one are too much alike to count as so many.
            self._metrics.per_token_logs.add((self.latest - self.first) / self.later_tokens)
        self._metrics.end(outcome, (self.latest or time.monotonic()) - self.begin)
