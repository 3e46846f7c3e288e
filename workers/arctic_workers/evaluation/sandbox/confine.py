"""Gives up all that a process has, then runs a program. Started as a file of its own, with the standard library alone.

What to run comes by standard input, as JSON: see `process.Program`. What is printed goes to standard error; standard
output is where a program's result goes, by the file that it is given.
"""

import ctypes
import json
import os
import resource
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

# prctl(2), capset(2), seccomp(2)
_SET_PARENT_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 1, 38, 22, 2
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9
# landlock(7): the same numbers on all processors.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
READ_FILE, READ_FOLDER, WRITE_FILE, REMOVE_FILE, MAKE_FILE, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 5, 1 << 8, 1 << 14
_FILE_RIGHTS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights on files each version knows, lowest bits first."""
_TCP_SINCE, _BIND_AND_CONNECT = 4, 0b11
_SCOPES_SINCE, _SOCKETS_AND_SIGNALS = 6, 0b11

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("folder", ctypes.c_int32)]


class _Instructions(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("first", ctypes.c_void_p)]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def landlock_version() -> int:
    """Return the version of Landlock that this kernel has; 0 for none, or one that is switched off."""
    found: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    return max(0, found)


def limit(limits: Mapping[str, int]) -> None:
    """Bound what the process may use; see `process.Limits`."""
    for kind, amount in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (amount, amount))


def give_up_rights() -> None:
    """Drop all capabilities, and never get any again."""
    _checked(_libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def keep_files(rights: Sequence[tuple[str, int]]) -> None:
    """Leave of all files and folders only these, each with the rights beneath it; and no TCP, where Landlock has it."""
    version = landlock_version()
    known = (1 << _FILE_RIGHTS_OF_VERSION.get(version, 16)) - 1
    wanted = _Ruleset(
        known,
        _BIND_AND_CONNECT if version >= _TCP_SINCE else 0,
        _SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0,
    )
    # An older kernel refuses fields that it has never heard of.
    size = 8 if version < _TCP_SINCE else 16 if version < _SCOPES_SINCE else 24
    rules = _checked(
        _libc.syscall(_CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), ctypes.c_uint32(0)), "landlock"
    )
    for path, right in rights:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _PathRule(right & known, folder)
        added = _libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0))
        _checked(added, f"landlock: {path}")
        os.close(folder)
    _checked(_libc.syscall(_RESTRICT_SELF, rules, ctypes.c_uint32(0)), "landlock")
    os.close(rules)


def filter_calls(program: bytes) -> None:
    """Let only the calls through that a BPF program allows, from now on."""
    content = ctypes.create_string_buffer(program, len(program))
    instructions = _Instructions(len(program) // 8, ctypes.addressof(content))
    _checked(_libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(instructions), 0, 0), "seccomp")


def main() -> None:
    """Confine this process as its standard input says, and run the program that is in there."""
    told: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, _SIGKILL, 0, 0, 0)
    if os.getppid() != told["parent"]:
        os._exit(1)  # it ended before the kernel was asked
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    programs = [(name, compile(source, f"<{name}>", "exec")) for name, source in told["sources"]]
    os.chdir(told["scratch"])
    give_up_rights()
    keep_files(told["files"])
    limit(told["limits"])
    filter_calls(bytes.fromhex(told["filter"]))
    for name, program in programs:
        module = sys.modules[name] = types.ModuleType(name)
        exec(program, module.__dict__)  # noqa: S102  all of this is there to do so
    module.run(told["payload"], result)
    result.flush()


if __name__ == "__main__":
    main()
