"""`python -m arctic_workers.training`: what a training pod runs."""

import sys

from arctic_workers.training.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
