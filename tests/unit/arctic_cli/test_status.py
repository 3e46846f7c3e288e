"""What `arctic status` makes of objects, and how `kubectl arctic` finds it."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_specs import TRAINING_SPEC

from arctic_api.ablation import ArcticAblationStatus
from arctic_api.evaluation import ArcticEvaluationStatus
from arctic_api.inference import ArcticInferenceStatus
from arctic_api.training import ArcticTrainingStatus
from arctic_cli.main import main
from arctic_cli.status.ablation import line_of_ablation, view_of_ablation
from arctic_cli.status.evaluation import line_of_evaluation, view_of_evaluation
from arctic_cli.status.service import view_of_service
from arctic_cli.status.text import short, table
from arctic_cli.status.training import line_of_training, view_of_training
from arctic_cluster import binaries

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def manifest(spec: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "tiny", "namespace": "team"}, "spec": spec, "status": status}


def pod(name: str, *, ready: bool) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {"name": name, "labels": {"arctic.dev/role": "worker"}},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "conditions": conditions},
    }


def test_a_training_shows_its_stages_its_loss_its_speed_and_what_is_wrong() -> None:
    status = ArcticTrainingStatus.model_validate(
        {
            "state": "OOMKilled",
            "attempt": 2,
            "restarts": 1,
            "stage": "code",
            "step": 150,
            "loss": "3.2100",
            "lossBySource": [{"name": "books", "loss": "3.0000"}],
            "tokensPerSecond": 3600,
            "mfu": "0.310",
            "eta": "2026-01-01T14:05:00Z",
            "timeShares": {"data": "0.001", "compute": "0.800", "communication": "0.199"},
            "gpuHours": "1.500",
            "plannedTokens": 802816,
            "plannedSteps": 196,
            "plannedMemory": "910Mi",
            "plannedTime": "3m43s",
            "plannedCostUSD": "0.31",
            "stages": [
                {
                    "name": "general",
                    "tokens": 400000,
                    "budget": 400000,
                    "initialValidationLoss": "7.6",
                    "validationLoss": "4.1",
                },
                {"name": "code", "tokens": 100000, "budget": 400000, "initialValidationLoss": "5.0"},
            ],
            "lastCheckpoint": {"step": 100, "tokens": 1, "uri": "file:///c/100", "time": "2026-01-01T11:58:30Z"},
            "conditions": [
                {
                    "type": "Degraded",
                    "status": "True",
                    "reason": "OOMKilled",
                    "message": "worker of tiny-1: raise the limit",
                    "lastTransitionTime": "2026-01-01T11:00:00Z",
                },
                {
                    "type": "Suspended",
                    "status": "False",
                    "reason": "NotAsked",
                    "lastTransitionTime": "2026-01-01T11:00:00Z",
                },
            ],
        }
    ).wire()
    shown = manifest(TRAINING_SPEC | {"restart": {"limit": 5}}, status)
    assert list(view_of_training(shown, [pod("tiny-0", ready=True)], NOW)) == [
        "team/tiny  OOMKilled  attempt 2, 1 of 5 restarts",
        "Degraded (OOMKilled): worker of tiny-1: raise the limit",
        "",
        "STAGE    TOKENS   OF                             HELD-OUT LOSS",
        "general  400,000  400,000  ####################  7.6 -> 4.1",
        "code     100,000  400,000  #####...............  5.0",
        "",
        "loss       3.2100  (books 3.0000)",
        "speed      3,600 tokens/s  MFU 0.310  done in 2h 5m",
        "time       compute 80%, communication 20%",
        "planned    802,816 tokens in 196 steps  910Mi a rank  3m43s  0.31 USD",
        "cost       1.500 GPU hours",
        "checkpoint step 100, 1m 30s ago: file:///c/100",
        "",
        "POD     ROLE    NODE    PHASE    READY",
        "tiny-0  worker  node-1  Running  yes",
    ]
    assert line_of_training(shown) == ("tiny", "OOMKilled", "code", "150", "3.2100", "3600")


def test_an_evaluation_shows_how_far_each_suite_is_and_what_it_found() -> None:
    figure = {"name": "pass@1", "value": "0.2500", "interval": "0.1000 to 0.4000"}
    status = ArcticEvaluationStatus.model_validate(
        {
            "state": "Running",
            "folder": "/var/lib/arctic/store/team/tiny-0a1b2",
            "enterpriseIntelligence": {"value": "0.5000", "interval": "0.4000 to 0.6000"},
            "suites": [
                {"name": "humaneval", "state": "Done", "answered": 4, "judged": 4, "planned": 4, "figures": [figure]},
                {"name": "gsm8k", "state": "Running", "answered": 2, "planned": 4},
                {"name": "spider", "state": "Unfit", "message": "a gold query fails"},
            ],
        }
    ).wire()
    shown = manifest({}, status)
    assert list(view_of_evaluation(shown, [pod("tiny-0", ready=True)])) == [
        "team/tiny  Running",
        "",
        "SUITE      STATE    ANSWERS                        FIGURE",
        "humaneval  Done     4/4      ####################  pass@1 0.2500 (0.1000 to 0.4000)",
        "gsm8k      Running  2/4      ##########..........",
        "spider     Unfit                                   a gold query fails",
        "",
        "enterprise intelligence  0.5000 (0.4000 to 0.6000)",
        "results                  /var/lib/arctic/store/team/tiny-0a1b2",
        "",
        "POD     ROLE    NODE    PHASE    READY",
        "tiny-0  worker  node-1  Running  yes",
    ]
    assert line_of_evaluation(shown) == ("tiny", "Running", "0.5000", "1/3")
    assert line_of_evaluation({"metadata": {"name": "tiny"}}) == ("tiny", "", "", "0/0")


def test_an_ablation_shows_what_is_best_so_far_and_what_its_swarm_foretells() -> None:
    trial = {"variant": "drawn 1", "seed": 0}
    forecast = {"name": "foretold", "objective": "1.0870", "interval": "0.6548 to 1.5192"}
    status = ArcticAblationStatus.model_validate(
        {
            "state": "Running",
            "planned": 14,
            "tokens": 1843200,
            "gpuHours": "0.250",
            "trials": [
                {"name": "a-1", "state": "Done", "tokens": 1000, **trial},
                {"name": "a-2", "state": "Running", **trial},
                {"name": "a-3", "state": "Running", **trial},
            ],
            "ranking": [{"name": "by hand", "tokens": 1000, "objective": "1.5000", "interval": "1.4000 to 1.6000"}],
            "foretold": [
                {"name": "half", "digest": "0", "mixtures": {"general": "books:0.2 sql:0.8"}, "forecasts": [forecast]}
            ],
            "best": "by hand",
        }
    ).wire()
    shown = manifest({}, status)
    assert list(view_of_ablation(shown, [])) == [
        "team/tiny  Running",
        "",
        "trainings  #...................  1 done, 2 running, of 14",
        "tokens     1,843,200, 0.250 GPU hours",
        "",
        "foretold by the first half of the swarm",
        "STAGE    MIXTURE",
        "general  books:0.2 sql:0.8",
        "CURRICULUM  OBJECTIVE  95% INTERVAL",
        "foretold    1.0870     0.6548 to 1.5192",
        "",
        "BEST     OBJECTIVE  95% INTERVAL      TOKENS",
        "by hand  1.5000     1.4000 to 1.6000  1,000",
    ]
    assert line_of_ablation(shown) == ("tiny", "Running", "1/14", "1,843,200", "by hand")
    assert line_of_ablation({"metadata": {"name": "tiny"}}) == ("tiny", "", "0/0", "0", "")


def test_an_object_that_nobody_has_visited_shows_what_there_is() -> None:
    new = {"metadata": {"name": "tiny", "namespace": "team"}, "spec": TRAINING_SPEC}
    assert next(view_of_training(new, [], NOW)) == "team/tiny    attempt , 0 of 10 restarts"
    assert list(view_of_service(new, []))[2:3] == ["groups   0 ready, 0 there, 0 asked for"]


def test_a_service_shows_its_groups_its_queue_and_its_latency() -> None:
    status = ArcticInferenceStatus.model_validate(
        {
            "state": "Canary",
            "url": "http://tiny.team.svc:8000",
            "replicas": 3,
            "readyReplicas": 2,
            "desiredReplicas": 2,
            "updatedReplicas": 1,
            "revision": "abc",
            "requestsPerSecond": "2.10",
            "tokensPerSecond": 1450,
            "queued": 3,
            "kvCacheUtilization": "12%",
            "ttftP99": "400ms",
            "canary": {
                "revision": "abc",
                "since": "2026-01-01T11:00:00Z",
                "verdict": "Analyzing",
                "message": "12 requests",
            },
        }
    ).wire()
    assert list(view_of_service(manifest({}, status), [pod("tiny-g0-0", ready=False)])) == [
        "team/tiny  Canary  http://tiny.team.svc:8000",
        "",
        "groups   2 ready, 3 there, 2 asked for, 1 of the newest revision",
        "revision abc",
        "canary   abc Analyzing: 12 requests",
        "requests 2.10 a second, 3 waiting",
        "latency  first token within 400ms (p99), 1,450 tokens/s",
        "cache    12% in use",
        "",
        "POD        ROLE    NODE    PHASE    READY",
        "tiny-g0-0  worker  node-1  Running  no",
    ]


def test_durations_have_two_units_and_a_table_without_rows_is_none() -> None:
    assert [short(NOW - NOW.replace(hour=hour, minute=minute)) for hour, minute in ((12, 0), (11, 59), (9, 30))] == [
        "0s",
        "1m 0s",
        "2h 30m",
    ]
    assert list(table(("A",), [])) == []


@pytest.mark.parametrize("command", [["status"], ["logs", "services", "chat"]])
def test_without_a_cluster_a_sentence_says_what_to_set(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    nowhere = CliRunner().invoke(main, command)
    assert nowhere.exit_code == 1
    assert nowhere.output.startswith("Error: no cluster: ")
    assert nowhere.output.endswith(": set KUBECONFIG\n")


@pytest.mark.parametrize("content", [b"clusters: [", b"words", b"- a list", b"contexts: words", b"\xff\xfe"])
def test_a_kubeconfig_that_is_none_is_a_sentence(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_bytes(content)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    told = CliRunner().invoke(main, ["status"])
    assert told.exit_code == 1
    assert told.output.startswith("Error: no cluster: ")
    assert told.output.endswith(": set KUBECONFIG\n")
    assert told.output.count("\n") == 1


def test_kubectl_finds_the_same_commands_as_its_own() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin:/bin"])
    kubectl = str(binaries.folder() / "kubectl")
    shown = subprocess.run(
        [kubectl, "arctic", "status", "--help"], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "[trainings|services|evaluations|ablations]" in shown.stdout
