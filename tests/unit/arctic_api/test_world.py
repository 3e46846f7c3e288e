"""What the operator tells its workers."""

import math
from typing import Any

import pytest
from api_cases import INFERENCE, LONG, TRAINING, apply_changes
from generated_manifests import right_trainings
from hypothesis import HealthCheck, given, settings

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.rules import MAX_WORLD_BYTES
from arctic_api.training import ArcticTrainingSpec
from arctic_api.verdict import verdict
from arctic_api.world import WORLD_VARIABLE, InferenceGroup, Mount, Report, TrainingWorld, run_folder

IDENTITY: dict[str, Any] = {"namespace": "default", "name": "tiny", "uid": "0a1b2c3d-0000"}


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(manifest=right_trainings())
def test_a_training_world_survives_its_way_through_a_variable(manifest: dict[str, Any]) -> None:
    spec = ArcticTrainingSpec.model_validate(manifest["spec"])
    world = TrainingWorld(**IDENTITY, first_host="a", spec=spec, attempt=1, epoch=1, run_folder="/store")
    assert TrainingWorld.model_validate_json(world.model_dump_json(by_alias=True)) == world
    assert TrainingWorld.model_validate_json(world.model_dump_json(by_alias=True, exclude_none=True)) == world


def test_an_inference_group_survives_its_way_through_a_variable() -> None:
    spec = ArcticInferenceSpec.model_validate(INFERENCE["spec"])
    group = InferenceGroup(
        **IDENTITY, hosts=["a", "b"], spec=spec, group="tiny-g0", revision="1", model_folder="/export"
    )
    assert InferenceGroup.model_validate_json(group.model_dump_json(by_alias=True)) == group


def test_a_world_that_the_rules_accept_fits_a_variable() -> None:
    """128 KiB, name and end included; names and addresses are as long as they can be."""
    name, namespace, nodes = "n" * 40, "s" * 63, 4096
    config = {"notes": "x" * (MAX_WORLD_BYTES - 2000)}
    changes = {
        "metadata": {"name": name, "namespace": namespace},
        "spec.model": {"config": config},
        "spec.parallelism.nodes": nodes,
        "spec.batch.tokensPerStep": 128 * nodes,
        "spec.template": {"environment": LONG},
    }
    manifest = apply_changes(TRAINING, changes)
    assert verdict(manifest) == []
    pod = f"{name}-0a1b2-a99999"
    spec = ArcticTrainingSpec.model_validate(manifest["spec"])
    identity = IDENTITY | {"first_host": f"{pod}-0.{pod}.{namespace}.svc", "name": name, "namespace": namespace}
    world = TrainingWorld(**identity, spec=spec, attempt=99999, epoch=10**10, run_folder="/" * 512)
    assert len(f"{WORLD_VARIABLE}={world.model_dump_json(by_alias=True)}\0") <= 128 * 1024


def test_workers_are_told_nothing_of_their_pods() -> None:
    changes = {"spec.template": {"environment": LONG}, "spec.resources": {"limits": {"cpu": 1}}}
    spec = ArcticInferenceSpec.model_validate(apply_changes(INFERENCE, changes)["spec"])
    group = InferenceGroup(**IDENTITY, hosts=["a", "b"], spec=spec, group="g", revision="1", model_folder="/export")
    assert (group.spec.template, group.spec.resources) == (None, None)
    assert len(group.model_dump_json(by_alias=True)) < 4096


@pytest.mark.parametrize(
    ("path", "place"),
    [("/data/a", "/mnt/one/a"), ("/data", "/mnt/one"), ("/data/deep/b", "/mnt/two/b"), ("/database", "/database")],
)
def test_a_path_of_the_manifest_is_found_in_the_innermost_mount(path: str, place: str) -> None:
    mounts = [Mount(mount_path="/data", path="/mnt/one"), Mount(mount_path="/data/deep", path="/mnt/two")]
    spec = ArcticInferenceSpec.model_validate(INFERENCE["spec"])
    group = InferenceGroup(
        **IDENTITY, hosts=["a", "b"], spec=spec, group="g", revision="1", model_folder="/export", mounts=mounts
    )
    assert group.locate(path) == place


def test_a_recreated_object_has_another_folder() -> None:
    assert run_folder("/s", "ns", "tiny", "0a1b2c3d-0") == "/s/ns/tiny-0a1b2"
    assert run_folder("/s", "ns", "tiny", "0a1b-2c3d") != run_folder("/s", "ns", "tiny", "1a1b-2c3d")


def test_a_report_fits_a_termination_message_when_it_says_little() -> None:
    report = Report(outcome="refused", reason="BadSource", message="no such file")
    assert Report.model_validate_json(report.model_dump_json(by_alias=True)) == report


def test_a_report_tells_of_a_loss_that_is_no_number() -> None:
    report = Report(outcome="failed", loss=math.nan)
    assert report.loss is not None
    assert math.isnan(report.loss)
