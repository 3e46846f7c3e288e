"""The guide's table of what an edit does, held to what it does: each field is in it, and each class of effect is so."""

import re
from pathlib import Path

import pytest
from api_cases import TRAINING, apply_changes

from arctic_api.training import ArcticTrainingSpec
from arctic_api.verdict import verdict
from arctic_operator.cache import Key
from arctic_operator.live import Live, Phase, TrainingObservation
from arctic_operator.observed import TrainingSeen
from arctic_operator.plan.training import plan_training

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "train.md"
EDITS = {
    "restart": {"spec.restart": {"limit": 3}},
    "restart.lossSpike": {"spec.restart": {"lossSpike": "skip"}},
    "startDeadline": {"spec.startDeadline": "1h"},
    "activeDeadline": {"spec.activeDeadline": "1h"},
    "ttlAfterFinished": {"spec.ttlAfterFinished": "1h"},
    "pricePerGPUHour": {"spec.pricePerGPUHour": "2.50"},
    "paused": {"spec.paused": True},
    "stopAfter": {"spec.stopAfter": "general"},
    "suspend": {"spec.suspend": True},
    "suspendAt": {"spec.suspendAt": "2M"},
    "curriculum": {"spec.curriculum.stages.0.learningRate.peak": 1e-3},
    "curriculum.stages.tokens": {"spec.curriculum.stages.0.tokens": "2M"},
    "curriculum.stages.name": {"spec.curriculum.stages.0.name": "other"},
    "curriculum.stages.mixture": {"spec.curriculum.stages.0.mixture": {"books": 2}},
    "curriculum.stages.sequenceLength": {"spec.curriculum.stages.0.sequenceLength": 64},
    "batch.tokensPerStep": {"spec.batch.tokensPerStep": 8192},
    "data": {"spec.data.sources.0.uri": "file:///other"},
    "data.validation": {"spec.data.validation": {"fraction": 0.1}},
    "tracking": {"spec.tracking": {"wandb": {"project": "p"}}},
    "batch": {"spec.batch.microBatchSize": 2},
    "optimizer": {"spec.optimizer": {"beta1": 0.8}},
    "parallelism": {"spec.parallelism.nodes": 4},
    "evaluation": {"spec.evaluation": {"suites": ["perplexity"]}},
    "checkpoint": {"spec.checkpoint.keep": 9},
    "priorityClassName": {"spec.priorityClassName": "high"},
    "image": {"spec.image": "other:1"},
    "resources": {"spec.resources": {"limits": {"cpu": 1}}},
    "template": {"spec.template": {"labels": {"team": "a"}}},
    "model": {"spec.model": {"preset": "arctic-small"}},
    "tokenizer": {"spec.tokenizer": {"train": {"vocabSize": 400}}},
    "seed": {"spec.seed": 1},
    "checkpoint.volume": {"spec.checkpoint.volume": {"claimName": "other"}},
    "queue": {"spec.queue": "queue"},
}
"""An edit of each field of the table."""


def table() -> dict[str, str]:
    """The effect that the guide names for each field."""
    edit = GUIDE.read_text().split("## Edit")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in edit.splitlines() if line.startswith("| `")]
    return {field: effect.strip() for fields, effect in rows for field in re.findall("`([^`]+)`", fields)}


def test_each_field_of_the_specification_is_in_the_guides_table():
    named = {field.alias or name for name, field in ArcticTrainingSpec.model_fields.items()}
    assert {field.partition(".")[0] for field in table()} == named
    assert table().keys() == EDITS.keys()


@pytest.mark.parametrize("field", EDITS)
def test_an_edit_has_the_effect_that_the_guide_names(build, operator, field):
    old = apply_changes(TRAINING, {"metadata.uid": build.uid, "metadata.namespace": "team"})
    new = apply_changes(old, EDITS[field])
    assert effect_of(build, operator, old, new) == table()[field]


def effect_of(build, operator, old, new):
    """What becomes of a running world when its manifest is edited."""
    if verdict(new, old):
        return "refused"
    before, after = (subject(operator, manifest, generation) for generation, manifest in enumerate((old, new), 1))
    job = build.job_of(
        {
            "metadata": {
                "name": "tiny-a1",
                "uid": "job",
                "labels": {"arctic.dev/attempt": "1"},
                "annotations": {"arctic.dev/revision": before.revision, "arctic.dev/generation": "1"},
            },
            "spec": {},
        }
    )
    live = Live(TrainingObservation(build.uid, 1, Phase.RUNNING, "", None), build.start, connected=True)
    seen = TrainingSeen(jobs=[job], pods=[build.pod(0), build.pod(1)], live=live)
    plan = plan_training(after, seen, build.settings, build.start)
    if not plan.delete:
        return "in place" if plan.commands else "at once"
    # The world ends; is the next one made, once its pods are gone?
    gone = plan_training(after, TrainingSeen(), build.settings, build.seconds(900))
    between = subject(operator, new | {"status": gone.status}, 2)
    made = plan_training(between, TrainingSeen(), build.settings, build.seconds(901)).create
    return "new attempt" if made else "ends the pods"


def subject(operator, manifest, generation):
    """A manifest as the operator reads it."""
    metadata = manifest["metadata"] | {"generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z"}
    operator.cache.put(manifest | {"metadata": metadata | {"resourceVersion": str(generation)}})
    return operator.reconciler.observer.subject(Key("ArcticTraining", "team", "tiny"))
