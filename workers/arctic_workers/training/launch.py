"""torchrun, tied to the supervisor that starts it: the kernel ends it when that is gone, and the ranks with it."""

from torch.distributed.run import main

from arctic_workers.control.lifeline import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    main()
