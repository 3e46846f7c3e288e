"""`python -m arctic_workers.inference`: one pod of an inference group, told by ARCTIC_WORLD and ARCTIC_NODE_RANK."""

import logging
import os

# Read once, when torch is imported. Threads that spin while they wait for work starve the other pods of a node: on a
# busy machine of two cores, two pods answered 2 to 18 tokens/s spinning and 42 waiting passively.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from arctic_workers.control.logs import configure_logs
from arctic_workers.inference.worker import run

if __name__ == "__main__":
    configure_logs(os.environ)
    code = run(os.environ)
    logging.shutdown()
    # Not by way of the interpreter's end: that joins threads which may wait for a rank that is gone.
    os._exit(code)
