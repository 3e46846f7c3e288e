"""`python -m arctic_workers.ablation`: what the pod of an ArcticAblation runs."""

import os
import signal
import sys

from arctic_api.world import ExitCode

if __name__ == "__main__":
    # The first process of a container ignores a SIGTERM that it does not ask for. Nothing here is worth keeping.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.INTERRUPTED))
    from arctic_workers.ablation.pod import main

    sys.exit(main())
