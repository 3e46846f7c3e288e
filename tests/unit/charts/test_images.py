"""The images' recipes, as far as they can be held to the project without building them."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
RECIPES = {path.parent.name: path.read_text() for path in (ROOT / "images").glob("*/Dockerfile")}


def test_images_are_built_with_the_projects_uv() -> None:
    (pinned,) = re.findall(r"^uv_version=(\S+)", (ROOT / "scripts" / "bootstrap.sh").read_text(), re.MULTILINE)
    used = {name: re.findall(r"uv==(\S+)", recipe) for name, recipe in RECIPES.items() if "uv sync" in recipe}
    assert used == {"operator": [pinned], "worker": [pinned]}


def test_images_install_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"--extra ([a-z]+)", RECIPES["operator"])) == {"operator"} <= set(extras)
    (workers,) = re.findall(r'ARG EXTRAS="(.*)"', RECIPES["worker"])
    assert set(workers.split()) <= set(extras)


def test_images_run_as_the_user_that_manifests_name() -> None:
    assert {name: re.findall(r"^USER (.*)$", recipe, re.MULTILINE) for name, recipe in RECIPES.items()} == {
        "gateway": ["65532:65532"],
        "operator": ["65532:65532"],
        "worker": ["65532:65532"],
    }
