"""The guide's table of what an edit does, held to what the operator does: no field is missing."""

import pytest
from api_cases import TRAINING, apply_changes
from edits import EDITS, ONLY_AHEAD, table

from arctic_api.training import ArcticTrainingSpec
from arctic_api.verdict import verdict
from arctic_operator.cache import Key
from arctic_operator.live import Live, Phase, TrainingObservation
from arctic_operator.observe import training_parts
from arctic_operator.observed import TrainingSeen
from arctic_operator.plan.training import plan_training


def test_each_field_of_the_specification_is_in_the_guides_table():
    named = {field.alias or name for name, field in ArcticTrainingSpec.model_fields.items()}
    assert {field.partition(".")[0] for field in table()} == named
    assert table().keys() == EDITS.keys()


@pytest.mark.parametrize("field", EDITS)
def test_an_edit_has_the_effect_that_the_guide_names(build, operator, field):
    old = apply_changes(TRAINING, {"metadata.uid": build.uid, "metadata.namespace": "team"})
    new = apply_changes(old, EDITS[field])
    named = table()[field]
    assert effect_of(build, operator, old, new) == ("new attempt" if named == ONLY_AHEAD else named)


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


def test_a_precision_that_an_upgrade_has_filled_in_is_no_edit():
    spec = TRAINING["spec"]
    assert training_parts(spec | {"precision": "bf16"}) == training_parts(spec)
    assert training_parts(spec | {"precision": "fp8"}) != training_parts(spec)


def subject(operator, manifest, generation):
    """A manifest as the operator reads it."""
    metadata = manifest["metadata"] | {"generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z"}
    operator.cache.put(manifest | {"metadata": metadata | {"resourceVersion": str(generation)}})
    return operator.reconciler.observer.subject(Key("ArcticTraining", "team", "tiny"))
