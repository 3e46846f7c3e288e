"""torchrun, tied to the supervisor that starts it: the kernel ends it when that is gone, and the ranks with it."""

import os

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, TrainingWorld
from arctic_workers.control.lifeline import die_with_parent
from arctic_workers.control.logs import WITHOUT_LOGGER, configure_logs
from arctic_workers.training.hang.watchdog import Watchdog
from arctic_workers.training.killed import leave_word
from arctic_workers.training.outcome import outcome_folder

if __name__ == "__main__":
    die_with_parent()
    configure_logs(os.environ, WITHOUT_LOGGER)
    folder = outcome_folder()
    world = TrainingWorld.model_validate_json(os.environ[WORLD_VARIABLE])
    if folder is not None:
        Watchdog(world, int(os.environ[NODE_RANK_VARIABLE]), folder).start()
    try:
        main()
    except ChildFailedError as error:
        leave_word(error, world.epoch)
        raise
