"""The one rank of a training, as a process: what it computes with is what it sees.

Arguments: the folder to work in, the run's name, its attempt, the dtype that models have, the precision, the step after
which it rests. Writes its report as the last line.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_workers.control.ports import free_ports
from arctic_workers.training import engine
from arctic_workers.training.rank import train

STEP = 256
STEPS = 12
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=3,
    moe_layer_frequency=2,
    num_local_experts=4,
)


def spec_of(folder: Path, precision: str, rest: int) -> ArcticTrainingSpec:
    stage = {"tokens": STEP * STEPS, "sequenceLength": 32, "mixture": {"books": 1}}
    content: dict[str, Any] = {
        "model": {"config": CONFIG.to_dict()},
        "precision": precision,
        "tokenizer": {"train": {"vocabSize": 300}},
        "data": {"sources": [{"name": "books", "category": "general", "uri": f"file://{folder}/corpus"}]},
        "curriculum": {"stages": [{"name": "only", "learningRate": {"peak": 3e-3}, **stage}]},
        "batch": {"tokensPerStep": STEP, "microBatchSize": 8},
        "checkpoint": {"volume": {"claimName": "c"}, "export": "none"},
        **({"suspendAt": STEP * rest} if rest < STEPS else {}),
    }
    return ArcticTrainingSpec.model_validate(content)


def main() -> None:
    folder, run, attempt, dtype, precision, rest = sys.argv[1:]
    [port] = free_ports(1)
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    # CPUs train in fp32 and GPUs in bf16: to be compared, both are told.
    engine.training_dtype = lambda device: getattr(torch, dtype)
    world = TrainingWorld(
        namespace="default",
        name=run,
        uid=run,
        first_host="127.0.0.1",
        tls_folder=None,
        spec=spec_of(Path(folder), precision, int(rest)),
        attempt=int(attempt),
        epoch=int(attempt),
        run_folder=str(Path(folder) / run),
    )
    print(train(world, None).model_dump_json())


if __name__ == "__main__":
    main()
