"""A service that answers a trace of requests, and how what users wait for is said."""

from collections.abc import Sequence
from pathlib import Path

from arctic_api.common import parse_duration
from arctic_api.inference import ArcticInferenceSpec
from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest
from arctic_cli.plan.serving_report import Report
from arctic_cli.plan.text import aligned, count
from arctic_model.planning.decoding import rank_limits
from arctic_model.planning.serving import ServingPlan
from arctic_model.planning.serving_time import EngineStep, seconds
from arctic_simulator.requests import Arrival, read_trace
from arctic_simulator.serving import Answer, Batching, percentile, serve
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE

_PERCENTS = (50, 95, 99)


def simulate_serving(report: Report, manifest: Manifest, requests: Path) -> str:
    """Return a table for people. Raises ManifestError where the group or the requests can't be simulated."""
    plan = report.plan
    arrivals = _requests(requests, plan)
    if not plan.fits:
        raise ManifestError(f"{manifest.file}: the group does not fit: `arctic plan` says what to change")
    spec = ArcticInferenceSpec.model_validate(manifest.content["spec"])
    target = spec.batching.target_inter_token_latency
    batching = Batching(
        token_budget=spec.batching.token_budget,
        max_sequences=spec.batching.max_sequences,
        blocks=plan.kv_tokens // BLOCK_SIZE,
        target=None if target is None else parse_duration(target),
        ranks=len(plan.ranks),
    )
    costs = report.costs
    if costs is not None:
        answers = serve(arrivals, batching, lambda step: (seconds(plan.serving.config, step, costs),))
        return _table(plan, arrivals, answers, "steps take what is predicted by the costs that were measured here")
    if rank_limits(plan, EngineStep(1, 1, 1, 1, 1)) is None:
        raise ManifestError("how fast this machine multiplies isn't known: install numpy, or name another --device")
    note = "steps take the least that the device allows; kernel starts and all that is not fused come on top"
    return _table(plan, arrivals, serve(arrivals, batching, lambda step: _seconds(plan, step)), note)


def _requests(path: Path, plan: ServingPlan) -> list[Arrival]:
    try:
        arrivals = read_trace(path)
    except (ValueError, OSError) as error:
        raise ManifestError(str(error)) from None
    serving = plan.serving
    most = serving.max_length if serving.visible is None else min(serving.max_length, serving.visible)
    for number, arrival in enumerate(arrivals, start=1):
        if arrival.prompt + arrival.answer > most:
            raise ManifestError(
                f"{path}, line {number}: prompt and answer are {arrival.prompt + arrival.answer} tokens, and a request "
                f"that is simulated has at most {most}: attention.maxLength, or what its window sees"
            )
    return arrivals


def _seconds(plan: ServingPlan, step: EngineStep) -> list[float]:
    return [limit.seconds for limit in rank_limits(plan, step) or ()]


def _table(plan: ServingPlan, arrivals: Sequence[Arrival], answers: Sequence[Answer], note: str) -> str:
    took = max(answer.times[-1] for answer in answers) - answers[0].arrived
    tokens = sum(arrival.answer for arrival in arrivals)
    between = [
        (answer.times[-1] - answer.times[0]) / (len(answer.times) - 1) for answer in answers if len(answer.times) > 1
    ]
    figures = {
        "ms until the first token": [1e3 * answer.first_token for answer in answers],
        "ms between tokens": [1e3 * gap for gap in between],
        "requests that wait when one comes": [float(answer.waiting) for answer in answers],
    }
    rows = [["", *(f"p{percent}" for percent in _PERCENTS), "most"]]
    rows += [
        [name, *(f"{percentile(values, percent):,.1f}" for percent in _PERCENTS), f"{max(values):,.1f}"]
        for name, values in figures.items()
        if values
    ]
    lines = [
        f"{count(len(arrivals), 'request')}, {count(tokens, 'token')} of answers in {took:,.1f} s: "
        f"{tokens / took:,.0f} tokens/s of one group ({plan.device.title}).",
        "",
        *aligned(rows),
        "",
        f"Note: {note}.",
    ]
    return "\n".join(lines)
