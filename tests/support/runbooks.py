"""The pages of docs/runbooks, and the commands in them."""

import re
import shlex
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "runbooks"
PAGES = sorted(FOLDER.glob("*.md"))


def commands(page: Path) -> list[list[str]]:
    """Return the commands that a page has in its blocks, as words."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    found = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in found if words]
