"""`python -m arctic_workers.training`: what a training pod runs."""

import sys

from arctic_workers.control.signals import StopFlag

if __name__ == "__main__":
    stop = StopFlag().install()  # before imports that take a second or more: a SIGTERM meanwhile would be lost, or kill
    from arctic_workers.training.supervisor import main

    sys.exit(main(stop))
