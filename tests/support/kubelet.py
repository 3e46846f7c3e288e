"""What the kubelet makes of a container's environment (kubernetes, third_party/forked/golang/expansion)."""

import re
from typing import Any


def variables_of(container: dict[str, Any]) -> dict[str, str]:
    """Return the literal variables as the container gets them: `$(NAME)` is an earlier one's value, `$$` is `$`."""
    known: dict[str, str] = {}

    def expanded(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else known.get(found[1], found[0])

    for item in container["env"]:
        if "value" in item:
            known[item["name"]] = re.sub(r"\$\$|\$\(([^)]*)\)", expanded, item["value"] or "")
    return known
