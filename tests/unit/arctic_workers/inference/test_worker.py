"""Exit codes and termination messages of pods that can't serve."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from api_cases import CASES
from tokenizers import Tokenizer, models

from arctic_api.engine_rules import ENGINE_RULES
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.rule import Rule
from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, InferenceGroup
from arctic_workers.inference.worker import run

MakeGroup = Callable[..., list[InferenceGroup]]


def environment(group: InferenceGroup, rank: str = "0") -> dict[str, str]:
    return {WORLD_VARIABLE: group.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: rank}


def report(group: InferenceGroup) -> dict[str, str]:
    written: dict[str, str] = json.loads(Path(group.termination_message).read_text())
    return written


def test_a_model_folder_that_is_not_there_is_bad_input(make_group: MakeGroup, tmp_path: Path) -> None:
    [group] = make_group(1)
    lost = group.model_copy(update={"model_folder": str(tmp_path / "nowhere")})
    assert run(environment(lost)) == 64
    assert report(lost)["outcome"] == "refused"
    assert str(tmp_path / "nowhere" / "config.json") in report(lost)["message"]


@pytest.mark.parametrize("rule", ENGINE_RULES, ids=lambda rule: f"{rule.message[:30]}{rule.field_path}")
def test_a_worker_refuses_what_its_engine_cannot_do_as_the_api_server_does(make_group: MakeGroup, rule: Rule) -> None:
    [case] = [case for case in CASES if case.rule is rule]
    [group] = make_group(1)
    bad = group.model_copy(update={"spec": ArcticInferenceSpec.model_validate(case.bad["spec"])})
    assert run(environment(bad)) == 64
    assert f"{rule.field_path[1:]}: {rule.message}" in report(bad)["message"]


def test_an_image_without_the_engine_is_bad_input(make_group: MakeGroup) -> None:
    [group] = make_group(1, engine={"name": "tensorrt-llm"})
    assert run(environment(group)) == 64
    assert "name its image in engine.image" in report(group)["message"]


@pytest.mark.parametrize("rank", ["1", "-1", "x"])
def test_a_rank_without_host_is_bad_input(make_group: MakeGroup, rank: str) -> None:
    [group] = make_group(1)
    assert run(environment(group, rank)) == 64


def test_a_pod_that_was_told_nothing_is_bad_input(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert run({NODE_RANK_VARIABLE: "0"}) == 64
    assert run({WORLD_VARIABLE: "{}", NODE_RANK_VARIABLE: "0"}) == 64
    assert "ARCTIC_WORLD must be set" in caplog.text
    assert "ARCTIC_WORLD is not an InferenceGroup: namespace" in caplog.text


def test_a_tokenizer_that_reaches_beyond_the_model_is_bad_input(
    make_group: MakeGroup, model_folder: Path, tmp_path: Path
) -> None:
    """However few tokens it has: one of them would end the group."""
    shutil.copytree(model_folder, tmp_path / "sparse")
    sparse = Tokenizer(models.WordLevel({"a": 0, "b": 70_000, "?": 2}, unk_token="?"))
    sparse.save(str(tmp_path / "sparse" / "tokenizer.json"))
    [group] = make_group(1)
    odd = group.model_copy(update={"model_folder": str(tmp_path / "sparse")})
    assert run(environment(odd)) == 64
    assert "the tokenizer's tokens go up to 70000" in report(odd)["message"]
