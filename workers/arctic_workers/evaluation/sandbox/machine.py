"""What this machine has to confine processes with, and which of its files an interpreter takes."""

import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from arctic_workers.evaluation.sandbox import confine
from arctic_workers.evaluation.sandbox.syscalls import filter_program

_NOT_THE_STANDARD_LIBRARY = {"site-packages", "dist-packages", "test"}


class SandboxError(Exception):
    """This machine has not what it takes to run code that nobody has read; the message says what is missing."""


def problems() -> Iterator[str]:
    """Say in sentences what this machine lacks to confine a process."""
    if sys.platform != "linux":
        yield "Code is confined by Linux's own means (Landlock and seccomp), and this is another system."
        return
    if confine.landlock_version() == 0:
        yield (
            "This kernel has no Landlock, or has it switched off: it takes Linux 5.13 or newer, with landlock among "
            "the modules in /sys/kernel/security/lsm, and a container's seccomp profile that allows its calls."
        )
    try:
        filter_program()
    except (ImportError, RuntimeError, OSError) as error:
        yield f"libseccomp is missing ({error}): install the system's package libseccomp2 and the extra `evaluation`."


@cache
def interpreter_files() -> tuple[tuple[str, int], ...]:
    """Return what a confined interpreter may read, with the rights: its library and the system's, no installed package.

    A data set's answers may lie in an installed package; so may our checkers.
    """
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    whole = [path for path in library.iterdir() if path.name not in _NOT_THE_STANDARD_LIBRARY]
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    whole += [Path(root) / multiarch for root in ("/lib", "/usr/lib") if multiarch]
    whole += [Path("/lib64"), Path("/usr/share/zoneinfo"), Path("/etc/localtime"), Path("/etc/ld.so.cache")]
    devices = [Path("/dev/null"), Path("/dev/zero"), Path("/dev/urandom")]
    return (
        (str(library), confine.READ_FOLDER),
        *(
            (str(path), confine.READ_FILE | (confine.READ_FOLDER if path.is_dir() else 0))
            for path in whole
            if path.exists()
        ),
        *((str(path), confine.READ_FILE | confine.WRITE_FILE) for path in devices),
    )
