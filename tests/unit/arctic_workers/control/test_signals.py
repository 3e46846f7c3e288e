import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
from arctic_workers.control.signals import StopFlag
stop = StopFlag().install()
print("ready", flush=True)
stop.requested.wait()
print("requested", stop.now.is_set(), flush=True)
stop.now.wait()
print("now", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_asks_and_a_second_one_insists(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "requested False\n"
        process.send_signal(number)
        assert process.stdout.readline() == "now\n"
    assert process.returncode == 0


REENTRANT = """
import os, signal
from arctic_workers.control.signals import StopFlag
stop = StopFlag().install()
with stop.requested._cond:
    os.kill(os.getpid(), signal.SIGTERM)
stop.requested.wait()
"""


def test_a_signal_that_comes_while_the_main_thread_holds_the_flags_lock_does_not_deadlock() -> None:
    assert subprocess.run([sys.executable, "-c", REENTRANT], timeout=60).returncode == 0


CALLED = """
import os, signal
from arctic_workers.control.signals import StopFlag
stop = StopFlag().install()
stop.request()
os.kill(os.getpid(), signal.SIGTERM)
print(stop.requested.is_set(), stop.now.wait(0.3))
"""


def test_a_signal_after_a_call_to_stop_does_not_make_it_urgent() -> None:
    done = subprocess.run([sys.executable, "-c", CALLED], timeout=60, capture_output=True, text=True)
    assert done.stdout == "True False\n"
