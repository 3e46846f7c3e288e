"""What `arctic evaluate` is told to judge."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest
from api_cases import ABLATION, BY_SUITES, apply_changes

from arctic_api.ablation import ArcticAblationSpec
from arctic_api.world import Mount
from arctic_cli.ablate import judging


def test_a_model_and_suites_are_told_by_the_paths_that_their_uris_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = MagicMock()
    monkeypatch.setattr(judging.subprocess, "Popen", started)
    data = [{"name": "ifeval", "uri": "file:///my%20suites/c#"}]
    spec = apply_changes(ABLATION, BY_SUITES | {"spec.training.evaluation.data": data})["spec"]
    mounts = [Mount(mount_path="/my suites", path="/claim")]
    judge = judging.Judging(ArcticAblationSpec.model_validate(spec), mounts)
    judge.start("one", "file:///store/100%25/run#1", tmp_path, tmp_path / "log")
    command = started.call_args.args[0]
    assert command[command.index("evaluate") + 1] == "/store/100%/run#1"
    assert command[command.index("--suite") + 1] == "ifeval=/claim/c#"
