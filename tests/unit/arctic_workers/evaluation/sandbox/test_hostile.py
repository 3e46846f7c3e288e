"""Programs that would rather have the score, the machine or the answers than solve the problem."""

import os
import signal
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.evaluation.sandbox import Limits, Program, Sandbox, SandboxError
from arctic_workers.evaluation.verdict import of_code

pytestmark = pytest.mark.processes

GOLD = "def add(a, b):\n    return a + b\n"
SECRET = 8_675_309
TEST = f"def check(f):\n    assert f(2, 3) == 5\n    assert f({SECRET}, 1) == {SECRET + 1}\ncheck(add)\n"
LIMITS = Limits(cpu_seconds=1, wall_seconds=60.0, memory_bytes=512 << 20, file_bytes=1 << 20)


def judged(sandbox: Sandbox, code: str, limits: Limits = LIMITS, seconds: float = 0.2) -> dict[str, Any]:
    candidate = Program("candidate", {"code": code, "entry_point": "add", "load_seconds": seconds})
    checker = Program("by_asserts", {"solution": GOLD, "test": TEST, "entry_point": "add", "seconds": seconds})
    return of_code(*sandbox.judge(candidate, checker, limits))


def test_files_that_come_and_go_are_no_fault_of_who_watches_them(sandbox: Sandbox) -> None:
    code = (
        "import os, time\nend = time.monotonic() + 0.5\n"
        "while time.monotonic() < end:\n  open('gone', 'w').close()\n  os.unlink('gone')\n"
    )
    assert judged(sandbox, code + GOLD, seconds=2.0)["passed"]


def test_a_right_answer_passes_and_a_wrong_one_fails(sandbox: Sandbox) -> None:
    assert judged(sandbox, GOLD)["passed"]
    wrong = judged(sandbox, "def add(a, b): return 5")
    assert (wrong["passed"], wrong["kind"]) == (False, "wrong answer")


EQUAL = "class Equal(int):\n  __eq__ = lambda self, other: True\n  __hash__ = int.__hash__\n"
HOSTILE = {
    "exits before the asserts": ("import sys; sys.exit(0)", "raised"),
    "ends its process before the asserts": ("import os; os._exit(0)", "exited"),
    "ends its process when it is called": ("import os\ndef add(a, b): os._exit(0)", "exited"),
    "is equal to everything": (f"{EQUAL}def add(a, b): return Equal()", "wrong answer"),
    "is equal to everything, and nothing else": (
        "class Any:\n  __eq__ = lambda self, other: True\ndef add(a, b): return Any()",
        "no plain value",
    ),
    "overrides builtins": (
        "import builtins\nbuiltins.AssertionError = builtins.bool = builtins.isinstance = lambda *a: True\n"
        "def add(a, b): return None",
        "exited",
    ),
    "patches the checker's module": (
        "import sys\nfor name in list(sys.modules):\n  if 'arctic' in name:\n"
        "    sys.modules[name].decode = lambda told: 5\n    sys.modules[name].Candidate = None\n"
        "def add(a, b): return 5",
        "wrong answer",
    ),
    "says that it has passed": (
        'import os, struct\nm = b\'{"error": "", "kind": "passed", "seconds": 0.0}\'\n'
        "m = struct.pack('<I', len(m)) + m\nfor fd in range(3, 64):\n  try: os.write(fd, m)\n  except OSError: pass\n"
        "def add(a, b): return 5",
        "no plain value",
    ),
    "answers without being asked": (
        'import os, struct\nm = b\'{"passed": true, "kind": "passed"}\'\nm = struct.pack(\'<I\', len(m)) + m\n'
        "for fd in range(3, 64):\n  try: os.write(fd, m)\n  except OSError: pass\n"
        "def add(a, b): return 5",
        "no plain value",
    ),
    "looks for the test in all that it can reach": (
        "import gc, sys\ndef add(a, b):\n  frame, seen = sys._getframe(), []\n"
        "  while frame: seen += [frame.f_locals, frame.f_globals]; frame = frame.f_back\n"
        "  seen += [vars(module) for module in list(sys.modules.values())] + gc.get_objects()\n"
        "  strings = {item for one in seen for item in gc.get_referents(one) if type(item) is str}\n"
        "  return a + b if any('def che' 'ck(' in text and 'assert' in text for text in strings) else -1",
        "wrong answer",
    ),
    "never ends": ("def add(a, b):\n  while True: pass", "timed out"),
    "never ends, and catches what would end it": (
        "import signal\ndef add(a, b):\n  signal.signal(signal.SIGPROF, signal.SIG_IGN)\n  while True: pass",
        "timed out",
    ),
    "is a fork bomb": ("import os\ndef add(a, b):\n  while True: os.fork()", "raised"),
    "is a fork bomb of the shell's": ("import os\ndef add(a, b): return os.system(':(){ :|:& };:')", "wrong answer"),
    "is a bomb of threads": (
        "import threading, time\ndef add(a, b):\n  while True: threading.Thread(target=time.sleep, args=(9,)).start()",
        "raised",
    ),
    "prints without end": ("def add(a, b):\n  while True: print('x' * 65536)", "timed out"),
    "asks for all memory": ("def add(a, b): return len(bytearray(1 << 40))", "memory"),
    "crashes": ("import ctypes\ndef add(a, b): return ctypes.string_at(0)", "killed"),
    "is no Python": ("def add(a, b) return 5", "syntax error"),
    "recurses without end": ("def add(a, b): return add(a, b)", "raised"),
    "returns what has no end": ("def add(a, b):\n  x = []\n  x.append(x)\n  return x", "no plain value"),
    "is empty": ("", "no function"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_solve_the_problem_does_not_score(sandbox: Sandbox, name: str) -> None:
    code, kind = HOSTILE[name]
    verdict = judged(sandbox, code)
    assert (verdict["passed"], verdict["kind"]) == (False, kind), verdict


REFUSED = {
    "reads a file of the user's": "open({secret!r}).read()",
    "reads the test in its parent": "open(f'/proc/{{os.getppid()}}/mem', 'rb')",
    "reads an installed package": "open({package!r}).read()",
    "lists what lies beside its folder": "os.listdir('..')",
    "writes a file": "open({target!r}, 'w').write('x')",
    "empties a file": "os.open({secret!r}, os.O_RDONLY | os.O_TRUNC)",
    "removes a file": "os.remove({secret!r})",
    "changes a file's mode": "os.chmod({secret!r}, 0)",
    "links a file to where it can read": "os.link({secret!r}, 'mine')",
    "makes a folder": "os.mkdir('deep')",
    "opens a connection": "socket.create_connection(('127.0.0.1', {port}), 1)",
    "opens a socket between processes": "socket.socketpair()",
    "starts a process": "os.fork()",
    "starts a program": "subprocess.run(['/bin/true'])",
    "becomes a program": "os.execv('/bin/true', ['/bin/true'])",
    "signals its parent": "os.kill(os.getppid(), signal.SIGTERM)",
    "has the kernel signal its parent": "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "signals everybody": "os.kill(-1, signal.SIGKILL)",
    "takes back its rights": "os.setuid(0)",
    "raises its limits": "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "traces a process": "check(libc.ptrace(16, os.getppid(), 0, 0))",
    "asks the kernel to do it in its stead": "check(libc.syscall(425, 8, libc.calloc(1, 128)))",
}


def test_what_is_not_its_own_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    secret, target = tmp_path / "answers.json", tmp_path / "written"
    secret.write_text("42")
    places = {"secret": str(secret), "target": str(target), "package": pytest.__file__, "port": 9}
    tries = "\n".join(f"  tried({name!r}, lambda: {action.format(**places)})" for name, action in REFUSED.items())
    code = (
        "import ctypes, fcntl, os, resource, signal, socket, subprocess\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def check(result):\n  if result < 0: raise OSError(ctypes.get_errno(), '')\n"
        "done = []\ndef tried(name, action):\n  try: action()\n"
        "  except (OSError, ValueError): return\n  done.append(name)\n"
        f"def add(a, b):\n{tries}\n  assert not done, done\n  return a + b"
    )
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        verdict = judged(sandbox, code, seconds=1.0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert verdict["passed"], verdict
    assert not heard.is_set()
    assert secret.read_text() == "42"
    assert not target.exists()


def test_its_scratch_folder_is_its_own_and_bounded(sandbox: Sandbox) -> None:
    own = (
        "import os\ndef add(a, b):\n  open('x', 'w').write('7')\n  os.rename('x', 'y')\n"
        "  assert open('y').read() == '7'\n  return a + b"
    )
    assert judged(sandbox, own)["passed"]
    many = "def add(a, b):\n  n = 0\n  while True:\n    n += 1\n    open(str(n), 'w').close()"
    assert judged(sandbox, many, seconds=2.0)["kind"] == "too many files"
    large = "def add(a, b):\n  n = 0\n  while True:\n    n += 1\n    open(str(n % 20), 'wb').write(bytes(1 << 19))"
    assert judged(sandbox, large, seconds=2.0)["kind"] == "too many files"


def test_what_sleeps_ends_with_the_walls_time(sandbox: Sandbox) -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=0.7)
    assert judged(sandbox, "import time\ndef add(a, b): time.sleep(60)", limits)["kind"] == "timed out"


def children() -> set[str]:
    """Processes of this one; others of its tests may have left some."""
    listed = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return {line.strip() for line in listed.stdout.splitlines() if not line.endswith(" ps")}


def test_nothing_is_left_running_or_lying_about(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    open_before, children_before = len(os.listdir("/proc/self/fd")), children()
    judged(
        sandbox, "import os, time\nos.close(2); os.close(1)\ntime.sleep(60)", Limits(cpu_seconds=1, wall_seconds=0.5)
    )
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert children() <= children_before


def test_a_machine_that_cannot_confine_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arctic_workers.evaluation.sandbox.confine.landlock_version", lambda: 0)
    with pytest.raises(SandboxError, match=r"has no Landlock.* not run without a sandbox"):
        Sandbox()


def test_a_sandbox_that_leaks_is_found_before_anything_runs_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_everything = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr("arctic_workers.evaluation.sandbox.process.filter_program", lambda: allow_everything)
    with pytest.raises(SandboxError, match=r"could .*open a socket, start a process.* not run here"):
        Sandbox()
