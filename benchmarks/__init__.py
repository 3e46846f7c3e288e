"""Every figure that the README claims, as a command that prints it: `python -m benchmarks.NAME [--quick | --keep]`.

Each prints a table for people and, as its last line, one JSON object of its figures; what has become worse since they
were last kept in `RESULTS.md` is told before. What tests need too is in `tests/support`, and imported from there.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
