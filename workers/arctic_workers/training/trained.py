"""What of a manifest has been trained: the fields that say which tokens came, which no edit may change. Pure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arctic_api.common import parse_tokens
from arctic_api.world import CHECKPOINT_MISMATCH
from arctic_workers.training.curriculum import Curriculum, StagePlan
from arctic_workers.training.data import VERSION
from arctic_workers.training.errors import Refused

STREAMS = "streams"
"""Which version of the token streams and their windows a checkpoint has been trained on; at first nothing said so."""


def trained_with(seed: int, stages: Iterable[StagePlan], share: float = 1.0) -> dict[str, Any]:
    """Return what of a manifest may not change once these stages have begun, by field: it says which tokens came."""
    # The share of each source follows from all budgets, those of stages to come among them.
    fields: dict[str, Any] = {"seed": seed, STREAMS: VERSION, "data.simulatedTokens, as a share,": share}
    for stage in stages:
        # It is the batch's where the stage has no own: which of the two says it changes nothing.
        fields[f"tokensPerStep of curriculum.stages[{stage.index}]"] = stage.tokens_per_step
        if stage.spec.final_mixture is not None:
            fields[f"curriculum.stages[{stage.index}].finalMixture"] = stage.final_weights
        fields |= {
            f"curriculum.stages[{stage.index}].{field}": value
            for field, value in (
                ("name", stage.name),
                ("tokens", parse_tokens(stage.spec.tokens)),
                ("mixture", stage.weights),
                ("sequenceLength", stage.spec.sequence_length),
            )
        }
    return fields


def check_same(kept: Mapping[str, Any], seed: int, curriculum: Curriculum, step: int) -> None:
    """Refuse a manifest under which the first `step` steps would have been others than they were.

    The budget of the stage under way may have become another one: no step that was made depends on it.

    Args:
        kept: what `trained_with` gave to the checkpoint of that step.
        seed, curriculum: the manifest's now.
        step: updates done.
    """
    if not kept:
        return
    begun = [stage for stage in curriculum.stages if f"curriculum.stages[{stage.index}].tokens" in kept]
    fields = trained_with(seed, begun, curriculum.share)
    budget = _open_budget(kept, begun, step)
    if kept.get(STREAMS, 1) != VERSION:
        raise Refused(
            CHECKPOINT_MISMATCH,
            f"the checkpoint of step {step} was trained on sequences of version {kept.get(STREAMS, 1)}, and this "
            f"release cuts those of version {VERSION}: finish the run with the release that began it, or begin another "
            "training from its weights (model.from)",
        )
    for field in [*kept, *(field for field in fields if field not in kept)]:
        if field != budget and fields.get(field) != kept.get(field):
            raise Refused(
                CHECKPOINT_MISMATCH,
                f"the checkpoint of step {step} was trained with {field} {json.dumps(kept.get(field))}, and the "
                f"manifest says {json.dumps(fields.get(field))}: what has been trained can't be changed; write the old "
                "value again, or make another training",
            )


def _open_budget(kept: Mapping[str, Any], begun: Sequence[StagePlan], step: int) -> str | None:
    """Return the field of the budget that may change: of the stage under way, which neither budget ends before now."""
    if not begun or begun[-1].spec.final_mixture is not None:  # what a ramp has drawn follows from its whole length
        return None
    stage, field = begun[-1], f"curriculum.stages[{begun[-1].index}].tokens"
    steps = math.ceil(kept[field] / stage.tokens_per_step)
    return field if stage.first_step <= step < min(stage.first_step + steps, stage.end_step) else None
