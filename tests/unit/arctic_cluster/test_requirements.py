"""What the machine must have, on machines that do not have it."""

import os
from pathlib import Path

import pytest

from arctic_cluster import requirements, shell
from arctic_cluster.errors import ClusterError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has everything, but for the kernel's modules: none is loaded, none can be."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(requirements, "_BRIDGE_RULES", tmp_path / "bridge-nf-call-iptables")
    monkeypatch.setattr(requirements, "_FILE_SYSTEMS", tmp_path / "filesystems")
    (tmp_path / "filesystems").write_text("nodev\toverlay\n")
    (tmp_path / "bridge-nf-call-iptables").write_text("1\n")
    monkeypatch.setattr(requirements, "python_version", lambda: (3, 12))
    monkeypatch.setattr(shell, "have", lambda command: True)
    monkeypatch.setattr(shell, "uv", lambda: "uv")
    monkeypatch.setattr(shell, "attempt", lambda *command: False)
    return tmp_path


def test_a_machine_that_has_everything_passes(machine: Path) -> None:
    requirements.check()


def test_a_machine_whose_python_no_pod_can_use_is_told(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "python_version", lambda: (3, 13))
    with pytest.raises(ClusterError, match=r"/usr/bin/python3 is Python 3\.13; .* need 3\.11 or 3\.12"):
        requirements.check()


def test_a_kernel_that_hides_bridged_packets_from_iptables_is_told(machine: Path) -> None:
    (machine / "bridge-nf-call-iptables").unlink()
    with pytest.raises(ClusterError, match="load it \\(`modprobe br_netfilter`\\)"):
        requirements.check()


def test_a_kernel_without_overlayfs_is_told(machine: Path) -> None:
    (machine / "filesystems").write_text("\text4\n")
    with pytest.raises(ClusterError, match="load it \\(`modprobe overlay`\\)"):
        requirements.check()


def test_a_module_that_can_be_loaded_is(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str | Path, ...]] = []
    monkeypatch.setattr(shell, "attempt", lambda *command: loaded.append(command) or True)
    (machine / "bridge-nf-call-iptables").unlink()
    requirements.check()
    assert loaded == [("modprobe", "br_netfilter")]


def test_the_policy_against_starts_goes_even_where_a_killed_run_left_it_and_the_machines_own_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(requirements, "_POLICY", policy)
    with requirements._no_service_starts():
        left = policy.read_text()
    policy.write_text(left)
    with requirements._no_service_starts():
        assert os.access(policy, os.X_OK)
    assert not policy.exists()
    policy.write_text("the machine's own")
    with requirements._no_service_starts():
        pass
    assert policy.read_text() == "the machine's own"
