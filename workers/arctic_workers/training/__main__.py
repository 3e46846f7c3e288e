"""`python -m arctic_workers.training`: what a training pod runs."""

import logging
import os

from arctic_workers.control.signals import StopFlag

if __name__ == "__main__":
    stop = StopFlag().install()  # before imports that take a second or more: a SIGTERM meanwhile would be lost, or kill
    from arctic_workers.training.supervisor import main

    code = main(stop)
    logging.shutdown()
    # Not by way of the interpreter's end: it aborts where a thread is still in torch, asking a pod that is gone.
    os._exit(code)
