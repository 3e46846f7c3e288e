"""The weights of a run in the exact Hugging Face layout, gathered tensor by tensor from the ranks that hold them."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.names import module_name, tensor_shapes
from arctic_model.weights import TensorEntry, write_config, write_weights
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.data import tokenizer
from arctic_workers.training.data.prepare import TOKENIZER_FOLDER
from arctic_workers.training.engine import Ranks
from arctic_workers.training.files import sync_files

EXPORT = "export"
DTYPE = torch.bfloat16  # as Arctic was published


def export(
    store: CheckpointStore, config: ArcticConfig, tensors: dict[str, Tensor], ranks: Ranks, expert_parallel: int
) -> None:
    """Write `export/` in the run's folder: config.json, weights, tokenizer; whole or not at all. Collective.

    Args:
        store: the attempt's handle on the store; `Fenced` if a newer attempt has claimed it.
        config: of the model.
        tensors: what this rank holds, by Hugging Face name.
        ranks: the world.
        expert_parallel: ranks that share out the experts; the first so many hold all of them together.
    """
    owner = _owners(config, expert_parallel)
    shapes = tensor_shapes(config)
    if not ranks.leader:
        for name in shapes:
            if owner(name) == ranks.rank:
                dist.send(tensors[name].to(DTYPE).contiguous(), 0)
        return

    def fetch(name: str) -> Tensor:
        if owner(name) == 0:
            return tensors[name].to(DTYPE)
        received = torch.empty(shapes[name], dtype=DTYPE, device=ranks.device)
        dist.recv(received, owner(name))
        return received

    folder = store.stage(EXPORT)
    try:
        write_config(folder, config.replace(torch_dtype="bfloat16"))
        write_weights(folder, [TensorEntry(name, shape, DTYPE) for name, shape in shapes.items()], fetch)
        tokenizer.copy(store.run_folder / TOKENIZER_FOLDER, folder)
        sync_files(folder)
        store.publish(EXPORT, store.run_folder / EXPORT)
    except Exception as error:
        raise store.explain(error) from error


def _owners(config: ArcticConfig, expert_parallel: int) -> Callable[[str], int]:
    """Return which rank gives a tensor: rank 0 what all have, each of the first expert-parallel group its experts."""
    each = config.num_local_experts // expert_parallel

    def owner(name: str) -> int:
        expert = module_name(name)[1]
        return 0 if expert is None else expert // each

    return owner
