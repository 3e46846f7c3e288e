"""The files that are derived from the types."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from arctic_api.crd import KINDS, Kind, crd
from arctic_cli.generated import CRD_FOLDER, DASHBOARD_FOLDER, REPOSITORY, crd_template, files, write

KIND_LIST = list(KINDS.values())


@pytest.mark.parametrize("path", files(), ids=str)
def test_what_is_committed_is_what_the_types_say(path: Path) -> None:
    committed = REPOSITORY / path
    assert committed.exists(), "run `python -m arctic_cli.generated`"
    assert committed.read_text() == files()[path], "run `python -m arctic_cli.generated`"


@pytest.mark.parametrize("folder", [CRD_FOLDER, DASHBOARD_FOLDER], ids=str)
def test_the_chart_has_no_others(folder: Path) -> None:
    found = {file.relative_to(REPOSITORY) for file in (REPOSITORY / folder).iterdir()}
    assert found == {path for path in files() if path.parent == folder}


@pytest.mark.parametrize("kind", KIND_LIST, ids=[kind.name for kind in KIND_LIST])
def test_a_crd_template_is_the_crd_behind_a_switch(kind: Kind) -> None:
    comment, switch, *body, end = crd_template(kind).splitlines()
    assert comment.startswith("#")
    assert (switch, end) == ('{{- if include "arctic.definitions" . }}', "{{- end }}")
    read = YAML(typ="safe").load("\n".join(body).replace("{{ .Chart.AppVersion | quote }}", "'1'"))
    assert read["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep", "arctic.dev/version": "1"}
    metadata = {name: value for name, value in crd(kind)["metadata"].items() if name != "annotations"}
    assert read == crd(kind) | {"metadata": metadata}


def test_writing_makes_every_file(tmp_path: Path) -> None:
    write(tmp_path)
    assert {file.relative_to(tmp_path) for file in tmp_path.rglob("*.*") if file.is_file()} == set(files())
