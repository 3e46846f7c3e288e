"""Manifests as files; tests/cluster/test_verdicts.py compares with kubectl itself."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from api_cases import INFERENCE, TRAINING, apply_changes
from click.testing import CliRunner

from arctic_cli.manifest import ManifestError, load, load_one
from arctic_cli.validate import validate

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
TINY_ABLATION = next(file for file in EXAMPLES if file.name == "tiny-ablation.yaml")


@pytest.fixture(autouse=True)
def no_volumes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has in its claims is not to decide on the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "manifest.yaml"
    file.write_text(text)
    return file


def spec_of(tmp_path: Path, scalar: str) -> Any:
    return load(written(tmp_path, f"kind: Any\nspec: {scalar}\n"))[0].content["spec"]


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("3e-4", 0.0003),
        ("1e12", 10**12),
        ("2.0", 2),
        ("1e21", 1e21),
        ("40000000000000005.", 40000000000000010),
        ("9223372036854775808", 9223372036854775808.0),
        ("0777", 511),
        ("0o17", 15),
        ("08", 8),
        ("1_000", 1000),
        ("on", True),
        ("No", False),
        ("~", None),
        ("", None),
        ("'on'", "on"),
        ("!!str 5", "5"),
        ("2001-01-01", "2001-01-01"),
        ("1:20", "1:20"),
        ("1e400", "1e400"),
        ("_1", "_1"),
        ("1.5M", "1.5M"),
    ],
)
def test_a_plain_scalar_means_what_it_means_to_kubectl(tmp_path: Path, scalar: str, value: Any) -> None:
    read = spec_of(tmp_path, scalar)
    assert (type(read), read) == (type(value), value)


def test_a_file_may_hold_several_documents(tmp_path: Path) -> None:
    file = written(tmp_path, f"---\n{json.dumps(TRAINING)}\n---\n---\n# nothing\n---\n{json.dumps(INFERENCE)}\n")
    assert [document.content["kind"] for document in load(file)] == ["ArcticTraining", "ArcticInference"]
    assert load_one(file, "ArcticInference") == INFERENCE


@pytest.mark.parametrize("kind", ["v1/List", "arctic.dev/v1alpha1/ArcticTrainingList"])
def test_the_items_of_a_list_are_manifests_as_they_are_to_kubectl(tmp_path: Path, kind: str) -> None:
    version, _, name = kind.rpartition("/")
    items = [TRAINING, apply_changes(TRAINING, {"spec.seed": -1})]
    inner = {"apiVersion": "v1", "kind": "List", "items": items[1:]}
    text = f"apiVersion: {version}\nkind: {name}\nitems:\n- {json.dumps(items[0])}\n- {json.dumps(inner)}\n"
    file = written(tmp_path, text)
    assert [document.content for document in load(file)] == items
    result = CliRunner().invoke(validate, ["-f", str(file)])
    assert (result.exit_code, result.stdout) == (64, "")
    assert result.stderr == f"{file}:5: spec.seed: must be greater than or equal to 0\n"


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    text = "kind: Any\nfirst: &a {b: 1, c: 2}\nsecond: {<<: *a, c: 3}\nthird: {<<: [*a, {b: 9, d: 0}]}\nfourth: *a\n"
    content = load(written(tmp_path, text))[0].content
    assert content["second"] == {"b": 1, "c": 3}
    assert content["third"] == {"b": 1, "c": 2, "d": 0}
    assert content["fourth"] == content["first"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Any\nspec:\n  a: 1\n  b: 2\n  a: 3\n", "manifest.yaml:5: the field 'a' is there twice"),
        ("kind: Any\nspec: [1\n", "manifest.yaml:3: not YAML"),
        ("kind: Any\nspec: .inf\n", "manifest.yaml:2: .inf has no place in JSON"),
        ("kind: Any\nspec: !thing 1\n", "manifest.yaml:2: '1' can't be read with the tag"),
        ("kind: Any\nspec: !!int x\n", "manifest.yaml:2: 'x' can't be read with the tag"),
        ("kind: Any\nspec: &a [*a]\n", "an alias stands within its own anchor"),
        ("kind: Any\n? [a]\n: b\n", "manifest.yaml:2: a field's name must be text"),
        ("kind: Any\n~: b\n", "manifest.yaml:2: a field's name must be text"),
        ("kind: Any\nspec: {<<: 1}\n", "`<<` merges objects"),
        ("- 1\n", "manifest.yaml:1: not a manifest"),
        ("kind: Any\nspec: *b\n", "manifest.yaml:2: not YAML"),
    ],
)
def test_what_can_not_be_read_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError) as error:
        load(written(tmp_path, text))
    assert message in error.value.message
    assert error.value.exit_code == 64


def test_what_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is nested too deeply to be read: write fewer levels"):
        load(written(tmp_path, "a: " + "[" * 3000 + "]" * 3000))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_bytes(b"kind: \xff\xfe\n")
    with pytest.raises(ManifestError, match="not YAML"):
        load(file)


def test_exactly_one_manifest_of_a_kind_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has 0 manifests of the kind ArcticInference: write exactly one"):
        load_one(written(tmp_path, json.dumps(TRAINING)), "ArcticInference")


def test_a_wrong_manifest_is_refused_with_every_problem_at_its_line(tmp_path: Path) -> None:
    text = f"""\
apiVersion: {TRAINING["apiVersion"]}
kind: ArcticInference
metadata: {{name: tiny}}
spec:
  model: {{training: tiny}}
  parallelism:
    tensor: two
    pipelines: 2
"""
    with pytest.raises(ManifestError) as error:
        load_one(written(tmp_path, text), "ArcticInference")
    first, second = error.value.message.splitlines()
    assert first.endswith("manifest.yaml:7: spec.parallelism.tensor: write a whole number")
    assert second.endswith("manifest.yaml:8: spec.parallelism.pipelines: unknown field; did you mean pipeline?")


def test_a_missing_field_is_reported_at_the_object_that_lacks_it(tmp_path: Path) -> None:
    (document,) = load(written(tmp_path, "apiVersion: a\nkind: Any\nspec:\n  stages:\n  - name: a\n"))
    assert document.line_of("spec.stages[0].tokens") == 5
    assert document.line_of("spec.model.preset") == 3
    assert document.line_of("metadata.name") == 1


def test_nulls_do_not_reach_those_who_run_it(tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps(apply_changes(TRAINING, {"spec.parallelism.zeroStage": None})))
    assert "zeroStage" not in load_one(file, "ArcticTraining")["spec"]["parallelism"]


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.name for file in EXAMPLES])
def test_examples_are_right(file: Path) -> None:
    result = CliRunner().invoke(validate, ["-f", str(file)])
    assert (result.exit_code, result.stderr) == (0, "")


def test_validate_prints_every_problem_of_every_file_and_exits_64(tmp_path: Path) -> None:
    bad = written(tmp_path, json.dumps(apply_changes(TRAINING, {"spec.seed": -1, "spec.bach": 1})))
    unreadable = tmp_path / "other.yaml"
    unreadable.write_text("[")
    result = CliRunner().invoke(validate, ["-f", str(bad), "-f", str(unreadable), "-f", str(EXAMPLES[0])])
    assert result.exit_code == 64
    assert "spec.seed: must be greater than or equal to 0" in result.stderr
    assert "spec.bach: unknown field; did you mean batch?" in result.stderr
    assert "other.yaml:1: not YAML" in result.stderr
    assert result.stdout == f"{EXAMPLES[0]}: ok (1 manifest)\n"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("stages.general.mixture", "stages.genral.mixture", "nothing is called 'genral': write one of general"),
        ("{code: 1, sql: 1}", "{math: 1}", "no stage draws from a source of the category math"),
        ("values: [1e-3, 3e-3]", "values: [1e-3, -1]", "spec.curriculum.stages[0].learningRate.peak: must be greater"),
    ],
)
def test_validate_refuses_an_ablation_whose_variants_can_not_be_trained_or_judged(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    text = TINY_ABLATION.read_text()
    assert old in text
    result = CliRunner().invoke(validate, ["-f", str(written(tmp_path, text.replace(old, new)))])
    assert (result.exit_code, result.stdout) == (64, "")
    assert result.stderr.startswith(f"{tmp_path}/manifest.yaml:8: spec: ")
    assert words in result.stderr


def test_validate_says_that_it_can_not_judge_the_draws_of_a_swarm_where_numpy_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in [name for name in sys.modules if name.startswith("arctic_ablation.swarm")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "numpy", None)
    result = CliRunner().invoke(validate, ["-f", str(TINY_ABLATION.with_name("tiny-swarm.yaml"))])
    assert (result.exit_code, result.stdout.endswith(": ok (1 manifest)\n")) == (0, True)
    assert "spec.mixture: its trainings are not judged, as numpy is not installed" in result.stderr
    assert "install it, or arctic-kubernetes[ablation]" in result.stderr


def test_validate_looks_at_the_data_that_are_on_this_machine(tmp_path: Path) -> None:
    """What is in a claim that has no folder here is not judged."""
    volumes = [{"claimName": "corpus", "mountPath": "/data"}]
    file = written(tmp_path, json.dumps(apply_changes(TRAINING, {"spec.template": {"volumes": volumes}})))
    command = ["-f", str(file), "--volumes", str(tmp_path / "volumes")]
    assert CliRunner().invoke(validate, command).exit_code == 0
    (tmp_path / "volumes" / "corpus").mkdir(parents=True)
    result = CliRunner().invoke(validate, command)
    assert result.exit_code == 64
    assert "spec.data.sources[0]: source books: no text file at file:///data" in result.stderr
    (tmp_path / "volumes" / "corpus" / "a.txt").write_text("a" * 400_000)
    result = CliRunner().invoke(validate, command)
    assert (result.exit_code, result.stdout) == (0, f"{file}: ok (1 manifest)\n")
    assert "spec.data.sources[0]: source books has about 99,000 tokens to train on, and the" in result.stderr


@pytest.mark.parametrize("text", ["", "# nothing\n---\n", "apiVersion: v1\nkind: List\nitems: []\n"])
def test_a_file_without_a_manifest_of_ours_is_no_right_one(tmp_path: Path, text: str) -> None:
    result = CliRunner().invoke(validate, ["-f", str(written(tmp_path, text))])
    assert result.exit_code == 64
    assert result.stderr.startswith(f"{tmp_path}/manifest.yaml: no manifest of arctic.dev")


def test_other_objects_of_a_file_are_left_to_others(tmp_path: Path) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "store"}}
    file = written(tmp_path, "\n---\n".join(map(json.dumps, (claim, TRAINING, claim))))
    result = CliRunner().invoke(validate, ["-f", str(file)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{file}: ok (1 manifest; 2 others not judged)\n"


def test_validate_takes_the_standard_input_and_folders_as_kubectl_does(tmp_path: Path) -> None:
    result = CliRunner().invoke(validate, ["-f", "-"], input=json.dumps(TRAINING))
    assert (result.exit_code, result.stdout) == (0, "-: ok (1 manifest)\n")
    result = CliRunner().invoke(validate, ["-f", "-"], input=json.dumps(apply_changes(TRAINING, {"spec.seed": -1})))
    assert result.exit_code == 64
    assert result.stderr.startswith("-:1: spec.seed: must be greater")

    for name in ("b.json", "claim.yml", "notes.txt"):
        (tmp_path / name).write_text("apiVersion: v1\nkind: List\n" if name == "claim.yml" else json.dumps(TRAINING))
    (tmp_path / "inner.yaml").mkdir()
    result = CliRunner().invoke(validate, ["-f", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/b.json: ok (1 manifest)\n")
    (tmp_path / "c.yaml").write_text("[")
    result = CliRunner().invoke(validate, ["-f", str(tmp_path)])
    assert (result.exit_code, "c.yaml:1: not YAML" in result.stderr) == (64, True)
    result = CliRunner().invoke(validate, ["-f", str(tmp_path / "inner.yaml")])
    assert (result.exit_code, "no file has a manifest of arctic.dev" in result.stderr) == (64, True)


@pytest.mark.parametrize("identity", [{"apiVersion": "v1"}, {"kind": "ArcticTrainer"}, {"apiVersion": "arctic.dev/v1"}])
def test_a_manifest_of_ours_that_is_misnamed_is_judged(tmp_path: Path, identity: dict[str, str]) -> None:
    result = CliRunner().invoke(validate, ["-f", str(written(tmp_path, json.dumps(TRAINING | identity)))])
    assert result.exit_code == 64
    assert ": write " in result.stderr
