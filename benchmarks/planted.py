"""Text with a planted answer: four languages that have nothing in common, and a held-out category made of two of them.

A language is sixty words, each of which is followed by one of four: a small model learns it from some ten thousand
tokens. What the objective asks for is text that is `TARGET`: which mixture of the four is best to train on follows.
"""

import random
from collections.abc import Mapping
from pathlib import Path

SOURCES = {"alpha": "general", "beta": "code", "gamma": "math", "delta": "instruction"}
"""Languages that are trained on, and the categories that they stand for."""
TARGET = {"beta": 0.6, "gamma": 0.4}
"""Of what the held-out text is made, line by line."""
CATEGORY = "sql"
WORDS, FOLLOWERS, LINE = 60, 4, 12
FILES, LINES = 40, 80
HELD_OUT_FILES = 12


def write(folder: Path) -> None:
    """Write a folder a language, and `target`, into a folder."""
    for name in SOURCES:
        _write(folder / name, {name: 1.0}, FILES)
    _write(folder / "target", TARGET, HELD_OUT_FILES)


def _write(folder: Path, parts: Mapping[str, float], files: int) -> None:
    folder.mkdir(parents=True)
    chance = random.Random(f"text of {folder.name}")
    languages = {name: _language(name) for name in parts}
    for number in range(files):
        names = chance.choices(list(parts), list(parts.values()), k=LINES)
        (folder / f"{number:02}.txt").write_text("\n".join(_line(languages[name], chance) for name in names))


def _language(name: str) -> dict[str, list[str]]:
    """Return which words follow each word."""
    chance = random.Random(f"language {name}")
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 7))) for _ in range(WORDS)]
    return {word: chance.choices(words, k=FOLLOWERS) for word in words}


def _line(language: Mapping[str, list[str]], chance: random.Random) -> str:
    words = [chance.choice(list(language))]
    while len(words) < LINE:
        words.append(chance.choice(language[words[-1]]))
    return " ".join(words)
