"""The weights of a run in the exact Hugging Face layout, gathered tensor by tensor from the ranks that hold them.

Of an adapter either the merged weights, or its own files in peft's layout.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from arctic_api.training import ArcticTrainingSpec
from arctic_model.config import ArcticConfig
from arctic_model.lora import A, B, adapter_shapes, merged
from arctic_model.names import module_name, tensor_shapes
from arctic_model.peft import write_adapter
from arctic_model.weights import TensorEntry, write_config, write_weights
from arctic_workers.training.base import Base
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.data import tokenizer
from arctic_workers.training.data.prepare import TOKENIZER_FOLDER
from arctic_workers.training.engine import Ranks
from arctic_workers.training.files import sync_files

EXPORT = "export"
DTYPE = torch.bfloat16  # as Arctic was published


def export(
    store: CheckpointStore,
    config: ArcticConfig,
    tensors: dict[str, Tensor],
    ranks: Ranks,
    spec: ArcticTrainingSpec,
    base: Base | None = None,
) -> None:
    """Write `export/` in the run's folder, as the manifest asks; whole or not at all. Collective.

    That is config.json, weights (with what an adapter adds) and tokenizer; or an adapter's own files and tokenizer.

    Args:
        store: the attempt's handle on the store; `Fenced` if a newer attempt has claimed it.
        config: of the model.
        tensors: what this rank holds, by Hugging Face name.
        ranks: the world.
        spec: the manifest's; of the ranks that share out the experts, the first so many hold all of them together.
        base: what an adapter stands on; None without one.
    """
    owner = _owners(config, spec.parallelism.expert_parallel)
    lora = None if base is None else base.lora
    if base is not None and spec.checkpoint.export == "adapter":
        if ranks.leader:
            own = {name: tensors[name].float() for name in adapter_shapes(config, base.lora.rank)}
            begun = spec.model.from_.wire() if spec.model.from_ else {}
            name = next(iter(begun.values()), "")
            with _published(store) as folder:
                write_adapter(folder, own, base.lora.rank, base.lora.alpha, name, is_llama=base.is_llama)
        return
    shapes = tensor_shapes(config)

    def own_tensor(name: str) -> Tensor:
        a, b = (tensors.get(f"{name.removesuffix('.weight')}.{part}.weight") for part in (A, B))
        if lora is None or a is None or b is None:
            return tensors[name].to(DTYPE)
        return merged(tensors[name], a, b, lora.alpha / lora.rank).to(DTYPE)

    if not ranks.leader:
        for name in shapes:
            if owner(name) == ranks.rank:
                dist.send(own_tensor(name).contiguous(), 0)
        return

    def fetch(name: str) -> Tensor:
        if owner(name) == 0:
            return own_tensor(name)
        received = torch.empty(shapes[name], dtype=DTYPE, device=ranks.device)
        dist.recv(received, owner(name))
        return received

    with _published(store) as folder:
        write_config(folder, config.replace(torch_dtype="bfloat16"))
        write_weights(folder, [TensorEntry(name, shape, DTYPE) for name, shape in shapes.items()], fetch)


@contextmanager
def _published(store: CheckpointStore) -> Iterator[Path]:
    """A staged folder that becomes the run's export, with the tokenizer in it, when the block ends well."""
    folder = store.stage(EXPORT)
    try:
        yield folder
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
