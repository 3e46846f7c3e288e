"""What rank 0 says of a training's course, as the status has it: real numbers are text."""

from collections.abc import Mapping
from typing import Any

from arctic_api.training import Routing, SourceLoss, TimeShares
from arctic_operator.live import RoutingSeen, TrainingObservation


def figures(seen: TrainingObservation) -> dict[str, Any]:
    """Return the fields of the status that say how the latest steps went."""
    losses = [SourceLoss(name=name, loss=f"{loss:.4f}") for name, loss in sorted(seen.loss_by_source.items())]
    return {
        "loss_by_source": losses or None,
        "learning_rate": f"{seen.learning_rate:.4g}" if seen.learning_rate is not None else None,
        "gradient_norm": f"{seen.gradient_norm:.4g}" if seen.gradient_norm is not None else None,
        "skipped_updates": seen.skipped_updates or None,
        "recomputes_activations": seen.recomputes or None,
        "time_shares": _time_shares(seen.seconds),
        "routing": _routing(seen.routing) if seen.routing else None,
        "exposed_communication": _exposed(seen),
    }


def _time_shares(seconds: Mapping[str, float]) -> TimeShares | None:
    """Return each part's share; a part that a newer worker tells of is left out."""
    total = sum(seconds.values())
    if total <= 0:
        return None
    return TimeShares(**{part: f"{seconds[part] / total:.3f}" for part in TimeShares.model_fields if part in seconds})


def _exposed(seen: TrainingObservation) -> str | None:
    """Return the share of the exchanges' time that was only waited for, of all and by kind, and the chunks of rows."""
    if seen.exposed_communication is None:
        return None
    chunks = seen.expert_chunks or 1
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in sorted(seen.exposed_by_kind.items()))
    return f"{seen.exposed_communication:.0%} ({kinds}), {chunks} chunk{'' if chunks == 1 else 's'}"


def _routing(seen: RoutingSeen) -> Routing:
    return Routing(
        imbalance=f"{seen.imbalance:.3f}",
        entropy=f"{seen.entropy:.3f}",
        dead_experts=seen.dead_experts,
        dropped=f"{seen.dropped:.4f}",
    )
