"""The layout that packaging and imports rely on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
]
OURS = {
    "arctic_api",
    "arctic_ablation",
    "arctic_operator",
    "arctic_workers",
    "arctic_model",
    "arctic_simulator",
    "arctic_cli",
    "arctic_cluster",
    "arctic_rpc",
}


def test_the_operator_folder_never_shadows_the_standard_library() -> None:
    assert not [path for path in (ROOT / "operator").iterdir() if path.suffix == ".py"]


def test_tests_are_no_packages() -> None:
    assert not [path for path in FILES if path.is_relative_to(ROOT / "tests") and path.name == "__init__.py"]


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    modules = [path for path in FILES if path.suffix == ".py" and OURS & set(path.parts)]
    assert modules
    named_alike = [path for path in modules if path.stem in sys.stdlib_module_names and path.stem != "__main__"]
    assert named_alike == []


def test_generated_code_is_not_committed() -> None:
    committed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "_pb2" not in committed


def test_every_module_says_what_may_be_in_it() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in FILES
        if path.suffix == ".py"
        and path.exists()
        and OURS & set(path.parts)
        and not path.is_relative_to(ROOT / "tests")
        and not path.read_text().lstrip().startswith('"""')
    ]
    assert silent == []


@pytest.mark.parametrize("private", ["/" + "root/", "/" + "work/", "/" + "tmp/brief"])
def test_no_path_of_a_machine_is_in_the_tree(private: str) -> None:
    texts = [path for path in FILES if path.is_file() and path.suffix not in {".png", ".lock", ".sum"}]
    assert [str(path) for path in texts if private in path.read_text(errors="replace")] == []
