"""How TensorRT-LLM is started over the pods of a group: command lines, environments and files. Pure: writes nothing.

One MPI rank a GPU, `tensor` in each of `pipeline` pods. Pod 0 runs `mpirun`, which starts TensorRT-LLM's own launcher,
`trtllm-llmapi-launch`, once a rank: in rank 0 it runs what it is given (the leader: LLM API and HTTP API) beside a
server of tasks, in the others a worker that waits for tasks. mpirun reaches the later pods by SSH: `sshd` runs there as
the pod's own user, on a port above 1024, and one key that only the pods of the group have proves both ends.

Open MPI 4.1 is what NVIDIA's images have (HPC-X), so its spelling is used. Open MPI 5 calls the parameters of the `rsh`
component `plm_ssh_*` and takes them by `--prtemca`, and has no `--leave-session-attached`.

Source: `tensorrt_llm/llmapi/trtllm-llmapi-launch`, `mgmn_leader_node.py` and `mgmn_worker_node.py` beside it, in two
stored versions of each; `sshd_config(5)` and `ssh_config(5)` of OpenSSH 9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arctic_api.world import LOGIN_KEY, NODE_RANK_VARIABLE, WORLD_VARIABLE, InferenceGroup

LEADER_VARIABLE = "ARCTIC_TENSORRT_LLM_LEADER"
"""Set for the leader's process: the folder in which it meets the supervisor of its pod."""
HOOK = Path(__file__).with_name("hook")
"""Folder with a `sitecustomize` that makes TensorRT-LLM know Arctic in every rank."""
SHELL = Path(__file__).with_name("shell.py")
ALIAS = "arctic-group"
"""Name under which every pod of a group proves itself: all have one key, whatever their addresses are."""
LINK_COMMAND = "arctic-link"
"""What pod 0 asks for where it wants the line to a later pod's supervisor, and no program."""
SILENCE_CHECKS = 4
SILENCE_INTERVAL = 5
"""Seconds between two checks of an idle connection, of which `SILENCE_CHECKS` go unanswered before it is given up."""


@dataclass(frozen=True)
class Place:
    """Where a pod's supervisor keeps its files: a private folder, with a short path and no space in it."""

    folder: Path

    @property
    def key(self) -> Path:
        """The group's private key, mode 0600: `ssh` and `sshd` take no other."""
        return self.folder / LOGIN_KEY

    @property
    def client_config(self) -> Path:
        """What `ssh` is told."""
        return self.folder / "ssh_config"

    @property
    def server_config(self) -> Path:
        """What `sshd` is told."""
        return self.folder / "sshd_config"

    @property
    def environment(self) -> Path:
        """What commands that come by SSH find as their environment, JSON."""
        return self.folder / "environment.json"

    @property
    def link(self) -> Path:
        """The socket that `LINK_COMMAND` leads to."""
        return self.folder / "link"

    @property
    def model(self) -> Path:
        """The model's folder as the ranks of this pod read it; the same path in all pods."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """The leader's last word."""
        return self.folder / "report.json"

    @property
    def leader(self) -> Path:
        """The leader's process id."""
        return self.folder / "leader.pid"


def login_files(place: Place, group: InferenceGroup, private: str, public: str, user: str) -> dict[Path, str]:
    """Return the files by which pods log in to each other, all for the eyes of `user` alone.

    `private` and `public` are the group's pair in OpenSSH's form.
    """
    known = public.strip()
    authorized, known_hosts = place.folder / "authorized_keys", place.folder / "known_hosts"
    return {
        place.key: private,
        authorized: f"restrict {known}\n",
        known_hosts: f"{ALIAS} {known}\n",
        place.client_config: _client_config(place, group, known_hosts, user),
    }


def server_file(place: Place, group: InferenceGroup, python: str, user: str) -> dict[Path, str]:
    """Return what `sshd` is told in a later pod. `python` is the interpreter of the forced command."""
    lines = {
        "Port": group.ports.login,
        "HostKey": place.key,
        "AuthorizedKeysFile": place.folder / "authorized_keys",
        "AllowUsers": user,
        "PidFile": "none",
        # The folder's group may write it: that is how a volume comes to a user who is not root.
        "StrictModes": "no",
        # PAM is for root alone.
        "UsePAM": "no",
        "AuthenticationMethods": "publickey",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "DisableForwarding": "yes",
        "PermitTTY": "no",
        "PermitUserRC": "no",
        "PrintMotd": "no",
        "UseDNS": "no",
        "LogLevel": "ERROR",
        "ClientAliveInterval": SILENCE_INTERVAL,
        "ClientAliveCountMax": SILENCE_CHECKS,
        # sshd gives a session hardly any environment, and a pod's values may have quotes and line ends in them.
        "ForceCommand": f"{python} -S -E {SHELL} {place.folder}",
    }
    return {place.server_config: "".join(f"{name} {value}\n" for name, value in lines.items())}


def _client_config(place: Place, group: InferenceGroup, known_hosts: Path, user: str) -> str:
    lines = {
        "Port": group.ports.login,
        "User": user,
        "IdentityFile": place.key,
        "IdentitiesOnly": "yes",
        "PreferredAuthentications": "publickey",
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": ALIAS,
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "ConnectTimeout": 10,
        "LogLevel": "ERROR",
        "ServerAliveInterval": SILENCE_INTERVAL,
        "ServerAliveCountMax": SILENCE_CHECKS,
    }
    return "Host *\n" + "".join(f"  {name} {value}\n" for name, value in lines.items())


def server_command(place: Place, sshd: str) -> list[str]:
    """Return the command of a later pod's `sshd`, which must be given by its whole path: it starts itself anew."""
    return [sshd, "-D", "-e", "-f", str(place.server_config)]


def link_command(place: Place, host: str) -> list[str]:
    """Return the command of pod 0's line to a later pod."""
    return ["ssh", "-F", str(place.client_config), host, LINK_COMMAND]


def mpirun_command(group: InferenceGroup, place: Place, python: str) -> list[str]:
    """Return the command that starts all ranks, in pod 0.

    Ranks fill one pod after the other, so that those of one pipeline rank, which talk most, are in one pod:
    TensorRT-LLM numbers them so.
    """
    tensor = group.spec.parallelism.tensor
    hosts = ",".join(f"{host}:{tensor}" for host in group.hosts)
    if len(group.hosts) == 1:
        hosts = f"localhost:{tensor}"
    return [
        "mpirun",
        *("-n", str(tensor * len(group.hosts))),
        *("--host", hosts),
        *("--map-by", "slot"),
        # Cores are the kubelet's to give.
        *("--bind-to", "none"),
        *(_remote_options(place) if len(group.hosts) > 1 else ()),
        "trtllm-llmapi-launch",
        # The launcher splits it at spaces.
        *(python, "-m", "arctic_workers.inference"),
    ]


def _remote_options(place: Place) -> Sequence[str]:
    parameters = {
        "plm_rsh_agent": "ssh",
        "plm_rsh_args": f"-F {place.client_config}",
        # Only pod 0 logs in to others.
        "plm_rsh_no_tree_spawn": "1",
        # Names would be cut at the first dot, and what is left of a pod's resolves nowhere.
        "orte_keep_fqdn_hostnames": "1",
    }
    return (
        # A daemon then ends with its SSH connection, and that when the other end is silent.
        "--leave-session-attached",
        *(word for name, value in parameters.items() for word in ("--mca", name, value)),
    )


def rank_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the ranks of a pod, from the pod's own."""
    paths = [str(HOOK), *filter(None, [inherited.get("PYTHONPATH")])]
    # What is not on the disk is not there: no rank asks the network for a model.
    return {"HF_HUB_OFFLINE": "1", **inherited, "PYTHONPATH": ":".join(paths)}


def leader_environment(group: InferenceGroup, place: Place, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of `mpirun`, which pod 0's ranks and the leader inherit.

    The leader reports to its supervisor, which reports for the pod.
    """
    told = group.model_copy(update={"termination_message": str(place.report)})
    return {
        **rank_environment(inherited),
        WORLD_VARIABLE: told.model_dump_json(by_alias=True),
        NODE_RANK_VARIABLE: "0",
        LEADER_VARIABLE: str(place.folder),
    }
