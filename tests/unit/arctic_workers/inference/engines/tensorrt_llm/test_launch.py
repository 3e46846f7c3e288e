"""What the pods of a group are started with: told from the group alone, to the letter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup
from arctic_workers.inference.engines.tensorrt_llm import launch, shell
from arctic_workers.inference.engines.tensorrt_llm.launch import Place

PLACE = Place(Path("/home/arctic/.arctic-group"))
HOSTS = ["tiny-g0-0.tiny-g0.team.svc", "tiny-g0-1.tiny-g0.team.svc"]


def group(tensor: int, pipeline: int) -> InferenceGroup:
    spec = {
        "model": {"uri": "file:///weights"},
        "engine": {"name": "tensorrt-llm"},
        "parallelism": {"tensor": tensor, "pipeline": pipeline},
    }
    return InferenceGroup(
        namespace="team",
        name="tiny",
        uid="0a1b2c3d",
        hosts=HOSTS[:pipeline],
        spec=ArcticInferenceSpec.model_validate(spec),
        group="tiny-g0",
        revision="1",
        model_folder="/weights",
    )


def test_mpirun_starts_a_rank_a_gpu_filling_one_pod_after_the_other() -> None:
    command = launch.mpirun_command(group(8, 2), PLACE, "/usr/bin/python3")
    assert command == [
        "mpirun",
        "-n",
        "16",
        "--host",
        "tiny-g0-0.tiny-g0.team.svc:8,tiny-g0-1.tiny-g0.team.svc:8",
        "--map-by",
        "slot",
        "--bind-to",
        "none",
        "--leave-session-attached",
        "--mca",
        "plm_rsh_agent",
        "ssh",
        "--mca",
        "plm_rsh_args",
        "-F /home/arctic/.arctic-group/ssh_config",
        "--mca",
        "plm_rsh_no_tree_spawn",
        "1",
        "--mca",
        "orte_keep_fqdn_hostnames",
        "1",
        "trtllm-llmapi-launch",
        "/usr/bin/python3",
        "-m",
        "arctic_workers.inference",
    ]


def test_in_one_pod_nothing_is_started_over_ssh() -> None:
    command = launch.mpirun_command(group(8, 1), PLACE, "/usr/bin/python3")
    assert command[:9] == ["mpirun", "-n", "8", "--host", "localhost:8", "--map-by", "slot", "--bind-to", "none"]
    assert command[9:] == ["trtllm-llmapi-launch", "/usr/bin/python3", "-m", "arctic_workers.inference"]


def test_both_ends_of_a_connection_are_held_to_the_groups_key() -> None:
    files = launch.login_files(PLACE, group(8, 2), "PRIVATE\n", "ssh-ed25519 AAAA\n", "arctic")
    assert {path.name: content for path, content in files.items()} == {
        "id_ed25519": "PRIVATE\n",
        "authorized_keys": "restrict ssh-ed25519 AAAA\n",
        "known_hosts": "arctic-group ssh-ed25519 AAAA\n",
        "ssh_config": """\
Host *
  Port 2222
  User arctic
  IdentityFile /home/arctic/.arctic-group/id_ed25519
  IdentitiesOnly yes
  PreferredAuthentications publickey
  BatchMode yes
  StrictHostKeyChecking yes
  HostKeyAlias arctic-group
  UserKnownHostsFile /home/arctic/.arctic-group/known_hosts
  GlobalKnownHostsFile /dev/null
  UpdateHostKeys no
  ConnectTimeout 10
  LogLevel ERROR
  ServerAliveInterval 5
  ServerAliveCountMax 4
""",
    }


def test_sshd_lets_in_the_key_alone_and_runs_nothing_but_our_shell() -> None:
    files = launch.server_file(PLACE, group(8, 2), "/usr/bin/python3", "arctic")
    assert files == {
        PLACE.server_config: f"""\
Port 2222
HostKey /home/arctic/.arctic-group/id_ed25519
AuthorizedKeysFile /home/arctic/.arctic-group/authorized_keys
AllowUsers arctic
PidFile none
StrictModes no
UsePAM no
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
DisableForwarding yes
PermitTTY no
PermitUserRC no
PrintMotd no
UseDNS no
LogLevel ERROR
ClientAliveInterval 5
ClientAliveCountMax 4
ForceCommand /usr/bin/python3 -S -E {launch.SHELL} /home/arctic/.arctic-group
"""
    }
    assert launch.server_command(PLACE, "/usr/sbin/sshd") == [
        "/usr/sbin/sshd",
        "-D",
        "-e",
        "-f",
        "/home/arctic/.arctic-group/sshd_config",
    ]
    assert launch.link_command(PLACE, "host") == [
        "ssh",
        "-F",
        "/home/arctic/.arctic-group/ssh_config",
        "host",
        "arctic-link",
    ]
    assert shell.LINK_COMMAND == launch.LINK_COMMAND


def test_ranks_have_the_environment_of_their_pod_and_learn_arctic_first() -> None:
    assert launch.rank_environment({"PATH": "/bin", "PYTHONPATH": "/own"}) == {
        "PATH": "/bin",
        "PYTHONPATH": f"{launch.HOOK}:/own",
        "HF_HUB_OFFLINE": "1",
    }
    assert launch.rank_environment({"HF_HUB_OFFLINE": "0"})["HF_HUB_OFFLINE"] == "0"
    assert (launch.HOOK / "sitecustomize.py").is_file()


def test_the_leader_is_told_apart_and_reports_to_its_supervisor() -> None:
    told = launch.leader_environment(group(8, 2), PLACE, {"HOME": "/home/arctic", "ARCTIC_NODE_RANK": "0"})
    world = json.loads(told.pop("ARCTIC_WORLD"))
    assert world.pop("terminationMessage") == "/home/arctic/.arctic-group/report.json"
    expected = json.loads(group(8, 2).model_dump_json(by_alias=True))
    expected.pop("terminationMessage")
    assert world == expected
    assert told == {
        "HOME": "/home/arctic",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(launch.HOOK),
        "ARCTIC_NODE_RANK": "0",
        "ARCTIC_TENSORRT_LLM_LEADER": "/home/arctic/.arctic-group",
    }


def test_files_of_a_place_are_in_its_folder_and_their_path_has_no_space(tmp_path: Path) -> None:
    place = Place(tmp_path)
    names = [name for name, value in vars(Place).items() if isinstance(value, property)]
    assert names
    assert all(getattr(place, name).parent == tmp_path for name in names)


@pytest.mark.parametrize("command", ["exit 3", "echo $WHO | grep -q pod"])
def test_the_shell_runs_commands_in_the_environment_of_the_pod(tmp_path: Path, command: str) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"WHO": "pod\n'\"", "PATH": "/usr/bin:/bin"}))
    ran = subprocess.run(
        [sys.executable, "-S", "-E", str(launch.SHELL), str(tmp_path)],
        env={"SSH_ORIGINAL_COMMAND": command, "WHO": "sshd"},
        check=False,
    )
    assert ran.returncode == (3 if command == "exit 3" else 0)
