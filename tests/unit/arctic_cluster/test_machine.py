"""What is read from the machine: mounts, versions, trees, state."""

import shutil
from pathlib import Path

import pytest

from arctic_cluster import binaries, cgroups, files, host, process, state
from arctic_cluster.addresses import plan
from arctic_cluster.errors import ClusterError

V1 = """\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 0:30 / /var/lib/here/a rw shared:1 - overlay overlay rw
3 2 0:31 / /var/lib/here/a/b\\040c rw - tmpfs tmpfs rw
4 1 0:32 / /var/lib/hereafter rw - tmpfs tmpfs rw
"""


def test_v1_hierarchies_are_found_beside_an_idle_v2_one() -> None:
    found = cgroups.parse_mounts(V1)
    assert [(h.mount.name, h.version, h.controllers) for h in found] == [
        ("cpuset", 1, {"cpuset"}),
        ("cpu,cpuacct", 1, {"cpu", "cpuacct"}),
        ("unified", 2, set()),
    ]
    assert not cgroups.is_v2(found)


def test_v2_rules_where_it_is_alone() -> None:
    assert cgroups.is_v2(cgroups.parse_mounts(V2))


def test_mounts_below_a_folder_are_the_folders_own_innermost_first() -> None:
    assert host.mounts_below(Path("/var/lib/here"), MOUNTS) == [Path("/var/lib/here/a/b c"), Path("/var/lib/here/a")]


@pytest.mark.parametrize(
    ("said", "version"), [("go1.26.8\n", (1, 26)), ("go1.9", (1, 9)), ("devel go1.27-abc", (0, 0))]
)
def test_gos_version_is_read(said: str, version: tuple[int, int]) -> None:
    assert binaries.parse_go_version(said) == version


def test_the_kubernetes_programs_say_the_version_that_their_module_requires() -> None:
    flags = {program.name: program.flags for program in binaries.programs()}
    assert "gitVersion=v1.34.4" in flags["kubelet"]
    assert "gitMinor=34" in flags["kube-apiserver"]


def test_modules_that_no_cluster_runs_do_not_have_it_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(binaries.MODULES, tmp_path / "modules")
    before = binaries.folder()
    monkeypatch.setattr(binaries, "MODULES", tmp_path / "modules")
    (tmp_path / "modules" / "lws" / "go.mod").write_text("other")
    assert binaries.folder() == before
    (tmp_path / "modules" / "etcd" / "go.mod").write_text("other")
    assert binaries.folder() != before


def test_a_trees_hash_follows_names_and_contents_and_not_the_place_or_what_python_compiled(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "package").mkdir(parents=True)
    (first / "package" / "a.py").write_text("a")
    shutil.copytree(first, second)
    (second / "package" / "__pycache__").mkdir()
    (second / "package" / "__pycache__" / "a.pyc").write_text("compiled")

    def hashed(folder: Path) -> str:
        return files.tree_hash(folder, files.files_under(folder))

    before = hashed(first)
    assert hashed(second) == before
    (second / "package" / "a.py").rename(second / "package" / "b.py")
    assert hashed(second) != before
    (first / "package" / "a.py").write_text("b")
    assert hashed(first) != before
    assert files.tree_hash(first, [], "extra") != files.tree_hash(first, [])


def test_an_atomic_write_leaves_no_other_file_and_the_asked_mode(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "file", "old")
    files.write_atomically(tmp_path / "file", "new", mode=0o600)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "new")]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "CLUSTERS", tmp_path)
    (tmp_path / "demo").mkdir()
    return tmp_path


@pytest.fixture
def saved(clusters: Path) -> state.State:
    it = state.State(
        name="demo",
        index=2,
        nodes=3,
        volumes=Path("/data"),
        binaries=Path("/bin"),
        image="an/image:1",
        ports=state.Ports(api=6443, etcd=23790, etcd_peer=23791),
        boot=state.boot_id(),
        processes={"etcd": process.Identity(pid=1, started=-1)},
        ready=True,
    )
    it.save()
    return it


def test_a_saved_state_is_read_back(saved: state.State) -> None:
    assert state.load("demo") == saved
    assert state.names() == ["demo"]
    assert saved.addresses == plan("demo", 2, 3)
    assert state.load("other") is None


def test_a_cluster_does_not_run_with_a_dead_process_or_after_a_reboot_or_a_broken_start(saved: state.State) -> None:
    assert not saved.running()
    saved.processes = {}
    assert saved.running()
    saved.ready = False
    assert not saved.running()
    saved.ready, saved.boot = True, "another"
    assert not saved.running()


@pytest.mark.parametrize("content", ["", "{}", '{"name": 1}', "[]"])
def test_a_damaged_state_is_an_error_that_names_the_file(clusters: Path, content: str) -> None:
    (clusters / "demo" / "state.json").write_text(content)
    with pytest.raises(ClusterError, match=r"state\.json is damaged"):
        state.load("demo")
