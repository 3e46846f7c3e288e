"""How figures of plans are written. Pure."""

from collections.abc import Mapping, Sequence

GB, MB = 1e9, 1e6


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose first column is flush left and whose others are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *rest = widths
    lines = (
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], rest, strict=True))])
        for row in rows
    )
    return [line.rstrip() for line in lines]


def billions(number: int) -> str:
    """Return a number of parameters."""
    return f"{number / 1e9:.1f}B" if number >= 1e8 else f"{number / 1e6:.1f}M"


def count(number: int, thing: str) -> str:
    """Return a number of things."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size_unit(largest: float) -> tuple[str, float]:
    """Return the unit of a table of bytes, with its name."""
    return ("GB (1e9 bytes)", GB) if largest >= GB else ("MB (1e6 bytes)", MB)


def written(fields: Mapping[str, int | str]) -> str:
    """Return fields of a manifest with what to write there."""
    return ", ".join(f"{path}: {value}" for path, value in fields.items())
