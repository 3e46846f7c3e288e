"""Code that others have written, as a module: the standard library looks for it by that name."""

import sys
import types
from typing import Any


def new_module(name: str) -> dict[str, Any]:
    """Return the names of a new, empty module, which `sys.modules` has.

    There data classes look up what annotations as text mean, and pickle looks up classes.
    """
    module = sys.modules[name] = types.ModuleType(name)
    return vars(module)
