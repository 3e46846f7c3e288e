"""Our Arctic for TensorRT-LLM on stand-ins of its layers: the wiring and the names, not TensorRT-LLM itself."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tensorrt_llm_stand_ins as stand_ins
import torch
from safetensors.torch import load_file
from torch import Tensor

from arctic_api.inference import Attention
from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.quantization import Quantization
from arctic_model.quantize import KEPT, quantize_checkpoint
from arctic_model.weights import save_model
from arctic_workers.inference.engines import tensorrt_llm
from arctic_workers.inference.engines.tensorrt_llm.checkpoint import read_stored, served_config

LENGTHS = [9, 1, 5]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with stand_ins.installed():
        tensorrt_llm.register()
        yield


def make(frequency: int, **changes: Any) -> ArcticConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 2}
    return ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=51, num_local_experts=4, moe_layer_frequency=frequency, initializer_range=0.3, **{**sizes, **changes}
    )


def saved(config: ArcticConfig, folder: Path) -> ArcticModel:
    model = ArcticModel(config)
    init_weights(model, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide which norm is read
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()).roll(len(name) + 7 * name.count("0")))
    save_model(model, folder)
    return model


def logits(folder: Path, ids: Tensor, attention: Attention, *, tensor: int, pipeline: int, experts: int) -> Tensor:
    """Build, load and run every rank in a thread; the last pipeline rank's logits, equal on its tensor ranks."""
    served = served_config(read_stored(folder), attention)
    weights = {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}
    wires = stand_ins.Wires(tensor, pipeline)
    config_class = stand_ins.AutoConfig.registered["arctic"]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])

    @torch.no_grad()
    def run(rank: int) -> Tensor:
        config = config_class(**served)
        config.torch_dtype, config.arctic = torch.float32, read_stored(folder).config
        mapping = stand_ins.Mapping(wires, rank, tensor, pipeline, experts)
        model = stand_ins.MODELS["ArcticForCausalLM"](stand_ins.ModelConfig(config, mapping))
        mapper = stand_ins.MAPPERS["HF", "ArcticForCausalLM"](model)
        model.load_weights(weights, weight_mapper=mapper)
        assert not any(parameter.isnan().any() for parameter in model.parameters())
        return model(stand_ins.AttentionMetadata(LENGTHS), ids, positions)

    with ThreadPoolExecutor(tensor * pipeline) as pool:
        results = list(pool.map(run, range(tensor * pipeline)))
    # Attention and the sum of residual MLP and experts, or the one MLP: two a layer; the embedding's one.
    if tensor > 1:
        assert wires.reduced == 2 * read_stored(folder).config.num_hidden_layers + 1
    last = results[-tensor:]
    assert all(torch.equal(each, last[0]) for each in last)
    return last[0]


def expected(model: ArcticModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part[None])[0] for part in ids.split(LENGTHS)])


def distance(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def token_ids(config: ArcticConfig) -> Tensor:
    return torch.randint(0, config.vocab_size, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("frequency", "tensor", "pipeline", "experts"),
    [(1, 1, 1, 1), (2, 1, 1, 1), (2, 2, 1, 2), (1, 2, 1, 1), (2, 4, 1, 2), (1, 4, 1, 4), (2, 1, 3, 1), (2, 2, 2, 2)],
)
def test_logits_are_those_of_the_plain_model(
    tmp_path: Path, frequency: int, tensor: int, pipeline: int, experts: int
) -> None:
    config = make(frequency)
    model = saved(config, tmp_path / "model")
    ids = token_ids(config)
    degrees = {"tensor": tensor, "pipeline": pipeline, "experts": experts}
    found = logits(tmp_path / "model", ids, Attention(), **degrees)
    wanted = expected(model, ids)
    assert wanted.std() > 0.5
    assert distance(found, wanted) < 1e-4


def test_the_manifests_window_reaches_attention(tmp_path: Path) -> None:
    config = make(1)
    model = saved(config, tmp_path / "model")
    ids = token_ids(config)
    one = {"tensor": 1, "pipeline": 1, "experts": 1}
    found = logits(tmp_path / "model", ids, Attention(window=4), **one)
    whole = expected(model, ids)
    model.config = config.replace(sliding_window=4)
    assert distance(found, expected(model, ids)) < 1e-4
    assert distance(found, whole) > 0.1


@pytest.mark.parametrize(("tensor", "experts"), [(1, 1), (2, 2)])
def test_fp8_blocks_are_found_with_their_scales(tmp_path: Path, tensor: int, experts: int) -> None:
    config = make(2, hidden_size=256, intermediate_size=160, num_attention_heads=4)
    model = saved(config, tmp_path / "model")
    stored = Quantization("fp8", "block")
    quantize_checkpoint(tmp_path / "model", tmp_path / "fp8", stored, max_shard_bytes=300_000)
    ids = token_ids(config)
    found = logits(tmp_path / "fp8", ids, Attention(), tensor=tensor, pipeline=1, experts=experts)
    exact = expected(model, ids)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "lm_head.weight", "norm.weight", "gate.weight")):
                parameter.copy_(parameter.bfloat16())
                continue
            for matrix in parameter.unbind() if parameter.dim() == 3 else (parameter,):
                values, scale = fp8.quantize_blocks(matrix, stored.block)
                matrix.copy_(stand_ins.matrix({"weight": values, "weight_scale_inv": scale}))
    # Logits are up to 12, and how sums are rounded is the machine's.
    assert distance(found, expected(model, ids)) < 1e-3
    assert distance(found, exact) > 1e-2


def test_fp8_a_tensor_is_found_with_its_scales(tmp_path: Path) -> None:
    """As ModelOpt writes it: a scalar beside each matrix, under the published names."""
    config = make(2)
    model = saved(config, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    stored = dict(weights)
    for name, weight in weights.items():
        if not name.endswith(KEPT):
            scale = weight.abs().max() / fp8.MAX
            stored[name], stored[f"{name}_scale"] = (weight / scale).to(fp8.DTYPE), scale
    mapping = stand_ins.Mapping(stand_ins.Wires(1, 1))
    served = stand_ins.AutoConfig.registered["arctic"](**served_config(read_stored(tmp_path / "model"), Attention()))
    served.torch_dtype, served.arctic = torch.float32, config
    made = stand_ins.MODELS["ArcticForCausalLM"](stand_ins.ModelConfig(served, mapping))
    with torch.no_grad():
        made.load_weights(stored, weight_mapper=stand_ins.MAPPERS["HF", "ArcticForCausalLM"](made))
    for name, parameter in made.named_parameters():
        assert not parameter.isnan().any(), name
    expert = made.model.layers[1].block_sparse_moe.experts.w2[3]
    published = model.get_parameter("model.layers.1.block_sparse_moe.experts.w2")[3]
    assert 0 < distance(expert, published) < published.abs().max() / 16


def test_a_llamas_tensors_find_their_places(tmp_path: Path) -> None:
    patterns = stand_ins.MAPPERS["HF", "ArcticForCausalLM"](None)
    renamed = patterns.preprocess_weights({"model.layers.3.mlp.gate_proj.weight": torch.ones(1)})
    assert list(renamed) == ["model.layers.3.block_sparse_moe.mlp.gate_proj.weight"]


def test_a_step_takes_ids_or_embeddings(tmp_path: Path) -> None:
    served = stand_ins.AutoConfig.registered["arctic"](**make(1).to_dict(), head_dim=8)
    served.torch_dtype, served.arctic = torch.float32, make(1)
    mapping = stand_ins.Mapping(stand_ins.Wires(1, 1))
    made = stand_ins.MODELS["ArcticForCausalLM"](stand_ins.ModelConfig(served, mapping))
    with pytest.raises(ValueError, match="one of them"):
        made.model(stand_ins.AttentionMetadata([1]))
