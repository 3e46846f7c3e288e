"""Every figure that the README claims, as a command that prints it: `python -m benchmarks.NAME [--quick]`.

Each prints a table for people and, as its last line, one JSON object of its figures. What tests need too is in
`tests/support`, and imported from there as they do.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
