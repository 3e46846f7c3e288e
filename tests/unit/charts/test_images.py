"""The images' recipes, as far as they can be held to the project without building them."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
RECIPES = {path.parent.name: path.read_text() for path in (ROOT / "images").glob("*/Dockerfile")}


def test_images_are_built_with_the_projects_uv() -> None:
    (pinned,) = re.findall(r"^uv_version=(\S+)", (ROOT / "scripts" / "bootstrap.sh").read_text(), re.MULTILINE)
    used = {name: re.findall(r"uv==(\S+)", recipe) for name, recipe in RECIPES.items() if "uv sync" in recipe}
    assert used == {"operator": [pinned], "worker": [pinned], "worker-vllm": [pinned]}


def test_images_install_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {name: set(re.findall(r"--extra ([a-z-]+)", recipe)) for name, recipe in RECIPES.items()}
    assert asked == {
        "gateway": set(),
        "operator": {"operator", "tracing"},
        "worker": {"training", "inference", "evaluation", "ablation", "tracing"},
        "worker-vllm": {"vllm", "tracing"},
        "worker-tensorrt-llm": set(),
    }
    assert set().union(*asked.values()) <= set(project["optional-dependencies"])


def test_the_image_on_nvidias_base_adds_what_a_worker_needs_and_replaces_nothing() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    recipe = RECIPES["worker-tensorrt-llm"]
    (release,) = re.findall(r"^ARG TENSORRT_LLM=(\S+)$", recipe, re.MULTILINE)
    assert f"tensorrt-llm=={release}" in extras["tensorrt-llm"]
    (install,) = re.findall(r"pip install .*?&&", recipe.replace("\\\n", " "))
    assert "--no-deps" in install
    added = dict(re.findall(r"([a-z][a-z.-]+)((?:==|>=)[0-9.]+)", install))
    asked = {name: bound for line in extras["worker"] for name, bound in re.findall(r"^([a-z.-]+)(>=[0-9.]+)", line)}
    asked |= {"ruamel.yaml": ">=0.18"}
    for name, bound in added.items():
        assert bound.startswith(asked[name].replace(">=", "==")) or bound == asked[name]


def test_images_run_as_the_user_that_manifests_name() -> None:
    assert {name: re.findall(r"^USER (.*)$", recipe, re.MULTILINE) for name, recipe in RECIPES.items()} == {
        "gateway": ["65532:65532"],
        "operator": ["65532:65532"],
        "worker": ["65532:65532"],
        "worker-vllm": ["65532:65532"],
        "worker-tensorrt-llm": ["root", "65532:65532"],
    }
