"""What the compiled code is made of. No more than Python's own library: the build runs this file by its path."""

import hashlib
from pathlib import Path


def digest() -> str:
    """Return hexadecimal digits over the names and the text of all C++ sources."""
    here = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted((*here.glob("*.cpp"), *here.glob("*.h"))):
        found.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()
