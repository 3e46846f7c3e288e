"""The entry point by which vLLM's processes end with the one that started them. Nothing else is done.

vLLM's engine and its ranks outlive a process that ends at once, as the pods of a broken group do: in a container the
kernel ends them, on a bare machine nobody would.
"""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Watch the parent, in a process that multiprocessing started; may be called any number of times.

    Not by a signal from the kernel: it would come at the end of the thread that started this process.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == __name__ for thread in threading.enumerate()):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name=__name__, daemon=True).start()
