"""Where the local cluster keeps things. Only paths: nothing here reads or writes.

Caches and volumes belong to the user (XDG folders); clusters belong to the machine, since bridges, namespaces and
cgroups do.
"""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = CHECKOUT / "cluster" / "modules"
MACHINE = Path("/var/lib/arctic")
CLUSTERS = MACHINE / "clusters"
# Claims, and the folders of the volumes that they are.
CORPUS = "arctic-corpus"
MODELS = "arctic-models"
STORE = "arctic-store"


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification has relative values ignored.
    base = Path(value) if value.startswith("/") else Path.home() / default
    return base / "arctic"


def cache() -> Path:
    """The user's cache: binaries, images and environments, each under the hash of what it was made from."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def default_secrets() -> Path:
    """The folder with a folder for each Secret that local processes are told of, unless the user names another."""
    return _xdg("XDG_DATA_HOME", ".local/share") / "secrets"


def default_volumes() -> Path:
    """The folder with the corpus, the models and the store that pods share, unless the user names another."""
    return _xdg("XDG_DATA_HOME", ".local/share") / "volumes"
