"""`python -m arctic_workers.evaluation`: what the pod of an evaluation runs."""

import logging
import os

from arctic_workers.control.signals import StopFlag

if __name__ == "__main__":
    stop = StopFlag().install()  # before imports that take a second or more: a SIGTERM meanwhile would kill
    from arctic_workers.evaluation.pod import main

    code = main(stop)
    logging.shutdown()
    # Not by way of the interpreter's end: it would wait for questions that are still being answered.
    os._exit(code)
