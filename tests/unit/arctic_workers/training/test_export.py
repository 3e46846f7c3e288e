import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arctic_api.training import ArcticTrainingSpec, Lora
from arctic_model.config import ArcticConfig
from arctic_model.llama import is_llama
from arctic_model.lora import adapter_shapes
from arctic_model.names import tensor_shapes
from arctic_model.peft import WEIGHTS_FILE
from arctic_workers.training.base import Base
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.data import tokenizer
from arctic_workers.training.engine import Ranks
from arctic_workers.training.export import EXPORT, export

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
LLAMA = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 9,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "mlp"), [("llama", "mlp.gate_proj"), ("arctic", "block_sparse_moe.mlp.w1")])
def test_an_adapter_goes_by_the_names_of_what_it_stands_on(spec_of: Any, tmp_path: Path, kind: str, mlp: str) -> None:
    config = ArcticConfig.from_dict(LLAMA)
    place = tmp_path / "base"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(LLAMA if kind == "llama" else config.to_dict()))
    store = CheckpointStore(tmp_path / "run", 1)
    store.claim("u")
    (store.run_folder / "tokenizer").mkdir()
    tokenizer.save(tokenizer.train(["a few words"], 270), store.run_folder / "tokenizer")
    spec = spec_of([{"tokens": 512, "sequenceLength": 16}], 128).wire()
    model = {"from": {"uri": f"file://{place}"}, "adapter": {"lora": {"rank": 2, "alpha": 4}}}
    spec |= {"model": model, "checkpoint": spec["checkpoint"] | {"export": "adapter"}}
    tensors = {name: torch.ones(shape) for name, shape in (tensor_shapes(config) | adapter_shapes(config, 2)).items()}
    base = Base(place, "", Lora(rank=2, alpha=4), is_llama(place))
    export(store, config, tensors, ALONE, ArcticTrainingSpec.model_validate(spec), base)
    written = load_file(store.run_folder / EXPORT / WEIGHTS_FILE)
    assert f"base_model.model.model.layers.0.{mlp}.lora_A.weight" in written
    assert len(written) == len(adapter_shapes(config, 2))
