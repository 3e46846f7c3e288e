"""Real text that Debian's and Python's packages ship: a small corpus of the four categories that the demo trains on.

Packages are downloaded by apt and unpacked into a scratch folder: nothing is installed on the machine, and nothing of
it is ever committed here. Sources and licences: `python3.N-doc` (PSF), `debian-handbook` (GPL-2+ or CC-BY-SA), the
Python standard library (PSF), `mariadb-test-data` (GPL-2), `metamath-databases` (CC0).
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import click

from arctic_cluster import apt
from arctic_cluster.errors import ClusterError
from arctic_cluster.files import fresh_partial, locked, readable_by_all
from arctic_cluster.paths import CORPUS, default_volumes

VERSION = "1"
_MARKER = "VERSION"
_BEGUN = "begun"
"""What the marker says of a corpus that is not whole yet."""
PYTHON_DOC = f"python3.{sys.version_info.minor}-doc"
PACKAGES = [PYTHON_DOC, "debian-handbook", "mariadb-test-data", "metamath-databases"]
MAX_CATEGORY_BYTES = 8_000_000


def prepare_corpus(folder: Path) -> bool:
    """Fill `folder` with general/, code/, sql/ and math/; return False if that was done before.

    All else in it stays as it is. Raises ClickException where something of others has one of these names.
    """
    if _mark(folder) == VERSION:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):  # else it is somebody's
        folder.chmod(0o755)  # pods read the corpus as another user
    with locked(folder / ".lock"):
        # Asked again: whoever held the lock may have done it.
        if _mark(folder) == VERSION:
            return False
        _refuse_what_others_have(folder)
        (folder / _MARKER).write_text(_BEGUN)
        _fill(folder)
        (folder / _MARKER).write_text(VERSION)
    return True


def _mark(folder: Path) -> str:
    marker = folder / _MARKER
    return marker.read_text(errors="replace") if marker.is_file() else ""


def _refuse_what_others_have(folder: Path) -> None:
    mark = _mark(folder)
    if mark == _BEGUN or mark.isdigit():
        return
    for path in (folder / name for name in (_MARKER, *_WRITERS)):
        if path.exists():
            raise click.ClickException(f"{path} is there and not of a corpus: name another folder, or move it away")


def _fill(folder: Path) -> None:
    with readable_by_all(), tempfile.TemporaryDirectory(prefix="arctic-corpus-") as scratch:
        unpacked = _unpack_packages(Path(scratch))
        for category, write in _WRITERS.items():
            target = folder / category
            fresh = fresh_partial(target)
            fresh.mkdir()
            write(unpacked, fresh)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)


def _unpack_packages(scratch: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise click.ClickException(
            "the corpus comes from Debian packages: run this where apt-get is, on Debian or Ubuntu"
        )
    try:
        apt.get("download", *PACKAGES, cwd=scratch)
    except ClusterError:  # the package lists are missing, or older than the packages
        apt.get("update")
        apt.get("download", *PACKAGES, cwd=scratch)
    for package in sorted(scratch.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package.name, "unpacked"], cwd=scratch, check=True)
    return scratch / "unpacked"


def _bounded(documents: Iterator[str]) -> Iterator[str]:
    """Pass documents on until the category is large enough for small models."""
    size = 0
    for document in documents:
        size += len(document)
        if size > MAX_CATEGORY_BYTES:
            return
        yield document


def _read(paths: Iterator[Path]) -> Iterator[str]:
    for path in sorted(paths):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text:
            yield text


def _require(documents: list[str], what: str) -> list[str]:
    if not documents:
        raise click.ClickException(f"no {what} found in the packages {', '.join(PACKAGES)}: their layout has changed")
    return documents


class _Paragraphs(HTMLParser):
    """Collects the text of a page's paragraphs, list items and headings."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 (the parser's interface)
        self._depth += tag in {"p", "h1", "h2", "h3"}

    def handle_endtag(self, tag: str) -> None:
        if tag in {"p", "h1", "h2", "h3"}:
            self._depth = max(0, self._depth - 1)
            self.pieces.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.pieces.append(data)


def _plain_text(html: str) -> str:
    parser = _Paragraphs()
    parser.feed(html)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]*\n[ \t]*", "\n", "".join(parser.pieces))).strip()


def _write_general(unpacked: Path, folder: Path) -> None:
    manuals = list(_bounded(_read(unpacked.glob("usr/share/doc/python3*/html/_sources/**/*.txt"))))
    handbook = [_plain_text(page) for page in _read(unpacked.glob("usr/share/doc/debian-handbook/html/en-US/*.html"))]
    for number, text in enumerate(_require(manuals, "manuals") + _require(handbook, "handbook pages")):
        (folder / f"{number:05}.txt").write_text(text, encoding="utf-8")


def _write_code(unpacked: Path, folder: Path) -> None:  # noqa: ARG001 (the standard library is on every machine)
    library = Path(sysconfig.get_path("stdlib"))
    modules = (
        path for path in library.rglob("*.py") if not {"test", "tests", "site-packages", "idlelib"} & set(path.parts)
    )
    with (folder / "standard-library.jsonl").open("w") as file:
        for text in _require(list(_bounded(_read(modules))), "Python modules"):
            file.write(json.dumps({"text": text}) + "\n")


def _statements(script: str) -> str:
    """Return the SQL of a test script, without the test driver's own commands."""
    return "\n".join(
        line for line in script.splitlines() if not re.match(r"\s*(#|--|let |eval |source |connect|disconnect)", line)
    )


def _write_sql(unpacked: Path, folder: Path) -> None:
    scripts = unpacked.glob("usr/share/mysql/mysql-test/main/*.test")
    statements = (sql for script in _read(scripts) if len(sql := _statements(script).strip()) > 200)
    for number, text in enumerate(_require(list(_bounded(statements)), "SQL scripts")):
        (folder / f"{number:05}.sql").write_text(text, encoding="utf-8")


def _write_math(unpacked: Path, folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = (unpacked / "usr/share/metamath/databases/iset.mm").read_text(encoding="utf-8", errors="replace")
    chapters = [
        chapter.strip() for chapter in re.split(r"\n(?=\s*\$\(\s*#\*#\*|\s*\$\(\s*=-=-)", text) if len(chapter) > 500
    ]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": list(_bounded(iter(_require(chapters, "chapters of mathematics"))))}),
        folder / "metamath.parquet",
    )


_WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "general": _write_general,
    "code": _write_code,
    "sql": _write_sql,
    "math": _write_math,
}


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), required=False)
def corpus(folder: Path | None) -> None:
    """Prepare the demo's corpus in FOLDER (by default where the claim `arctic-corpus` of local runs is).

    What else is in FOLDER stays; something of yours that is called as one of the corpus' own folders is never replaced.
    """
    folder = folder or default_volumes() / CORPUS
    made = prepare_corpus(folder)
    click.echo(f"corpus {'prepared in' if made else 'is ready in'} {folder}")
