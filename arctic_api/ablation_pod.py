"""The contract between the operator and the pod that does one thing for an ablation; `world` has the others' parts.

It stands by itself, as all that there is of an ablation takes a tenth of a second to import.
"""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from arctic_api.ablation import AblationTask, ArcticAblationSpec, ForetoldStatus, PointStatus, SwarmPart
from arctic_api.common import Resource
from arctic_api.world import PodWorld, without_pods


def _without_trials_pods(spec: ArcticAblationSpec) -> ArcticAblationSpec:
    return spec.model_copy(update={"training": without_pods(spec.training)})


class TrialWord(Resource):
    """What is known of one training of an ablation."""

    uid5: str | None = None
    """Of the ArcticTraining, by which its folder is known; None for an earlier ablation's, or none."""
    failed: str = ""
    """Why it goes no further."""
    points: list[PointStatus] = Field(default_factory=list)
    """Where it rested, and was judged."""


def _pack(told: Any) -> str:
    return b64encode(zlib.compress(json.dumps(told).encode())).decode()


def _pack_trials(trials: Mapping[str, TrialWord]) -> str:
    return _pack({name: word.wire() for name, word in trials.items()})


def _pack_spec(spec: ArcticAblationSpec) -> str:
    return _pack(spec.model_dump(mode="json", by_alias=True))  # whole: a null that is set unsets a field


def _unpack(told: Any) -> Any:
    return json.loads(zlib.decompress(b64decode(told))) if isinstance(told, str) else told


TrialWords = Annotated[
    dict[str, TrialWord], BeforeValidator(_unpack), PlainSerializer(_pack_trials, return_type=str, when_used="json")
]
"""What is known of trainings by name, packed as JSON: Linux takes 128 KiB a variable, and a thousand are longer."""
AblationSpec = Annotated[
    ArcticAblationSpec,
    BeforeValidator(_unpack),
    AfterValidator(_without_trials_pods),
    PlainSerializer(_pack_spec, return_type=str, when_used="json"),
]
"""A specification, packed as they are: each of its changes may be a whole curriculum."""


class AblationWorld(PodWorld):
    """The pod that does one thing for an ablation: it foretells from a swarm, or writes the report."""

    kind: Literal["ArcticAblation"] = "ArcticAblation"
    spec: AblationSpec
    task: AblationTask
    """A part of the swarm, from which is foretold, or the report."""
    told: dict[SwarmPart, dict[str, str]] = Field(default_factory=dict)
    """Mixtures by stage that parts of the swarm have foretold as the best."""
    trials: TrialWords
    """The trainings, by name."""
    store: str
    """Folder of the trainings' store."""
    folder: str
    """Folder of this ablation in it, `STORE/NAMESPACE/NAME-UID5`."""
    whole: bool = True
    """Whether nothing is left to be trained."""


class AblationReport(Resource):
    """What the pod of an ablation leaves in its termination message."""

    outcome: Literal["succeeded", "refused", "failed"]
    reason: str = ""
    """CamelCase, for a condition."""
    message: str = ""
    """A sentence for people: what is wrong, where, what to do."""
    foretold: ForetoldStatus | None = None
    """By a part of its swarm."""
