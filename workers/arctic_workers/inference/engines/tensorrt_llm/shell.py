"""What `sshd` runs in place of the command that it is asked for. The standard library alone: it is run as a file.

The command gets the pod's environment, not sshd's. The one command that names no program is the line to the pod's
supervisor: it connects its standard input and output with the supervisor's socket.
"""

import json
import os
import selectors
import socket
import sys
from pathlib import Path

LINK_COMMAND = "arctic-link"


def main(folder: Path) -> None:
    """Do what SSH_ORIGINAL_COMMAND asks for, with the files in `folder`."""
    command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    if command == LINK_COMMAND:
        relay(folder / "link")
    else:
        environment = json.loads((folder / "environment.json").read_text())
        os.execve("/bin/sh", ["sh", "-c", command], environment)  # noqa: S606  the one who asks has the group's key


def relay(path: Path) -> None:
    """Carry bytes both ways until either side ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line, selectors.DefaultSelector() as selector:
        line.connect(str(path))
        ways = {0: line.fileno(), line.fileno(): 1}
        for source in ways:
            selector.register(source, selectors.EVENT_READ)
        while True:
            for ready, _ in selector.select():
                content = os.read(ready.fd, 4096)
                if not content:
                    return
                os.write(ways[ready.fd], content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
