"""The life of a cluster, as far as it is order and files: nothing is started here."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from arctic_cluster import binaries, cgroups, cluster, host, image, network, requirements, state
from arctic_cluster.cluster import Cluster
from arctic_cluster.errors import ClusterError
from arctic_cluster.progress import Progress


class Machine:
    """A machine without clusters, on which `up` starts nothing but says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[int] = []
        self.meanwhile: Callable[[], object] | None = None

    def prepare(self, further_steps: int) -> tuple[Progress, Path]:
        """Take as long as `meanwhile` does."""
        happens, self.meanwhile = self.meanwhile, None
        if happens:
            happens()
        return Progress(further_steps), self.folder / "environment"

    def start(self, it: Cluster, planned: state.State, environment: Path, progress: Progress) -> None:
        """Start no process."""
        with progress.step("start"):
            self.started.append(planned.nodes)
        host.remember()
        it._link_environment(environment)
        planned.ready = True
        planned.save()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    it = Machine(tmp_path)
    for module in (state, cluster, host):
        monkeypatch.setattr(module, "CLUSTERS", tmp_path / "clusters")
    (tmp_path / "sys" / "vm").mkdir(parents=True)
    (tmp_path / "sys" / "vm" / "overcommit_memory").write_text("0")
    monkeypatch.setattr(host, "MACHINE", tmp_path)
    monkeypatch.setattr(host, "_REMEMBERED", tmp_path / "settings.json")
    monkeypatch.setattr(host, "_SYSCTL", tmp_path / "sys")
    for place in ("_KUBELET", "_NAMESPACES", "_CONTAINER_LOGS", "_CNI_RESULTS", "_SHIM_SOCKETS"):
        monkeypatch.setattr(host, place, tmp_path / "machine" / place)
    monkeypatch.setattr(host, "remove_traces", lambda run: None)
    monkeypatch.setattr(cluster, "_LOCK", tmp_path / "cluster.lock")
    monkeypatch.setattr(cluster, "prepare", it.prepare)
    monkeypatch.setattr(Cluster, "_start", lambda *arguments: it.start(*arguments))
    monkeypatch.setattr(requirements, "check_root", lambda: None)
    monkeypatch.setattr(requirements, "check_space", lambda folder, gibibytes: None)
    monkeypatch.setattr(binaries, "folder", lambda: tmp_path / "bin")
    monkeypatch.setattr(image, "reference", lambda: "an/image:1")
    monkeypatch.setattr(network, "routes", list)
    for module, names in {network: ["remove"], cgroups: ["kill_all", "remove"]}.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda of: None)
    return it


def test_what_another_command_started_meanwhile_is_left_running(machine: Machine) -> None:
    machine.meanwhile = lambda: Cluster().up()
    assert not Cluster().up()
    assert machine.started == [2]


def test_what_another_command_ended_meanwhile_is_started_with_its_steps_counted(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    Cluster().up()
    capsys.readouterr()
    machine.meanwhile = lambda: Cluster().down()
    assert Cluster().up()
    assert machine.started == [2, 2]
    assert "[1/4] start" in capsys.readouterr().out


def test_an_up_that_names_nothing_keeps_what_runs(machine: Machine) -> None:
    Cluster().up(nodes=3, volumes=machine.folder / "volumes")
    assert not Cluster().up()
    assert not Cluster().up(nodes=3)
    assert machine.started == [3]


def test_an_up_that_names_nothing_makes_a_broken_cluster_as_it_was(machine: Machine) -> None:
    Cluster().up(nodes=3, volumes=machine.folder / "volumes")
    broken = state.load("demo")
    assert broken
    broken.ready = False
    broken.save()
    assert Cluster().up()
    made = state.load("demo")
    assert made
    assert (made.nodes, made.volumes) == (3, machine.folder / "volumes")


def test_an_up_that_names_something_else_than_runs_is_refused(machine: Machine) -> None:
    Cluster().up(nodes=3)
    with pytest.raises(ClusterError, match="runs with 3 nodes"):
        Cluster().up(nodes=2)
    with pytest.raises(ClusterError, match="take it down first"):
        Cluster().up(volumes=machine.folder)


def test_folders_that_root_made_in_the_store_are_given_to_the_pods(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "arctic-store" / "default").mkdir(parents=True)
    cluster._create_volumes(tmp_path)
    assert (tmp_path / "arctic-store" / "default").stat().st_uid == image.USER
    assert (tmp_path / "arctic-corpus").is_dir()
    assert (tmp_path / "arctic-models").is_dir()


def test_volumes_can_be_read_by_pods_whatever_the_umask(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    before = os.umask(0o077)
    try:
        cluster._create_volumes(tmp_path / "volumes")
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "volumes").iterdir()} == {0o755}


def test_settings_are_put_back_by_the_next_down_when_one_was_broken_off_before_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = machine.folder / "sys" / "vm" / "overcommit_memory"
    Cluster().up()
    setting.write_text("1")
    with monkeypatch.context() as broken_off:
        broken_off.setattr(host, "restore", _ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            Cluster().down()
    assert setting.read_text() == "1"
    assert not Cluster().down()
    assert setting.read_text() == "0"


def _ctrl_c() -> None:
    raise KeyboardInterrupt


def test_what_is_left_of_a_start_that_was_broken_off_is_in_nobodys_way(machine: Machine) -> None:
    leftover = machine.folder / "clusters" / "demo"
    (leftover / "logs").mkdir(parents=True)
    assert state.names() == ["demo"]
    assert not Cluster().down()
    assert not leftover.exists()
    (leftover / "logs").mkdir(parents=True)
    assert Cluster().up()


def test_commands_ask_the_cluster_past_the_machines_proxy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    Cluster().up()
    plain = Cluster().command("kubectl", "get", "pods")
    assert plain[0] == str(machine.folder / "bin" / "kubectl")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert Cluster().command("kubectl", "get", "pods") == ["env", "--unset=https_proxy", *plain]
