"""The files by which the pods of a group log in to each other, written: `launch` says what is in them."""

import json
import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from arctic_api.world import LOGIN_KEY, InferenceGroup
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.tensorrt_llm.launch import Place, login_files, rank_environment, server_file

SYSTEM_PROGRAMS = "/usr/sbin"
"""Where `sshd` is, which an unprivileged user's PATH may lack."""


def new_place(environment: Mapping[str, str]) -> Place:
    """Make the folder of this pod's files anew: what an earlier container of the pod left is not believed."""
    folder = Path(environment.get("HOME", "/tmp")) / ".arctic-group"  # noqa: S108  as in a pod without a home
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return Place(folder)


def write_login(place: Place, group: InferenceGroup, folder: str) -> None:
    """Write what `ssh` needs, from the group's key in `folder`. Raises Refused if it can't be read."""
    try:
        private = (Path(folder) / LOGIN_KEY).read_text()
        public = (Path(folder) / f"{LOGIN_KEY}.pub").read_text()
    except OSError as error:
        raise Refused(f"The group's key can't be read ({error}); is its Secret whole?") from None
    write_files(login_files(place, group, private, public, _user()))


def write_server(place: Place, group: InferenceGroup, environment: Mapping[str, str]) -> None:
    """Write what `sshd` needs, and the environment that programs are to find, which is this pod's."""
    write_files(server_file(place, group, sys.executable, _user()))
    write_files({place.environment: json.dumps(rank_environment(environment))})


def find_program(name: str, package: str) -> str:
    """Return the whole path of a program. Raises Refused if the image has none."""
    found = shutil.which(name) or shutil.which(name, path=SYSTEM_PROGRAMS)
    if found is None:
        raise Refused(f"engine.image: the image lacks {name}, which starts the ranks in its pods; add {package} to it")
    return found


def _user() -> str:
    """The name that this process's user has: `sshd` knows users by name alone."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise Refused(
            f"engine.image: user {os.getuid()} has no line in the image's /etc/passwd, so sshd can't let it in; add one"
        ) from None


def write_files(files: Mapping[Path, str]) -> None:
    """Write each at once or not at all, for this user's eyes alone."""
    for path, content in files.items():
        partial = path.with_name(f"{path.name}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        partial.rename(path)
