import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arctic_api.world import TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.names import llama_name, tensor_shapes
from arctic_model.quantization import Layout, Quantization
from arctic_model.quantize import quantize_checkpoint
from arctic_model.weights import SINGLE_FILE, load_weights, save_model
from arctic_workers.training.checkpoint.store import CheckpointStore, Manifest
from arctic_workers.training.engine import Ranks, build_model, named_tensors
from arctic_workers.training.errors import Refused
from arctic_workers.training.start import Start, find_start, fit_vocabulary, kept_config

CACHE = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
"""Of a checkpoint whose weights are plain: only its keys and values are to be in FP8."""
TOKENS = torch.arange(14).view(2, 7)
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 20,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 30,
    "eos_token_id": [2, 7],
}  # fmt: skip


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "llama"
    folder.mkdir()
    shapes = tensor_shapes(ArcticConfig.from_dict(LLAMA))
    generator = torch.Generator().manual_seed(0)
    save_file(
        {llama_name(name): 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        folder / SINGLE_FILE,
    )
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


@pytest.fixture
def world_of(spec_of: Any, tmp_path: Path) -> Any:
    """Makes a world whose manifest has this `model`, with a seed of its own."""

    def make(model: dict[str, Any], weights_folder: Path | None = None) -> TrainingWorld:
        spec = spec_of([{"tokens": 512, "sequenceLength": 16}], 128).wire() | {"model": model, "seed": 3}
        return TrainingWorld.model_validate(
            {"namespace": "n", "name": "t", "uid": "u", "first_host": "h", "spec": spec, "attempt": 1, "epoch": 1}
            | {"runFolder": str(tmp_path), "weightsFolder": str(weights_folder) if weights_folder else None}
        )

    return make


def logits(world: TrainingWorld) -> torch.Tensor:
    """What the model of a world says before its first step, without DeepSpeed."""
    start = find_start(world)
    model = build_model(start.config, Ranks(0, 1, 0, torch.device("cpu")), 1, world.spec.seed, start.weights)
    with torch.no_grad():
        out: torch.Tensor = model(TOKENS)
    return out


def reference(folder: Path) -> torch.Tensor:
    model = ArcticModel(ArcticConfig.from_folder(folder))
    load_weights(model, folder)
    with torch.no_grad():
        out: torch.Tensor = model(TOKENS)
    return out


def from_uri(folder: Path, **more: Any) -> dict[str, Any]:
    return {"from": {"uri": f"file://{folder}"}, **more}


def test_a_llama_is_trained_as_it_is(llama: Path, world_of: Any) -> None:
    world = world_of(from_uri(llama))
    assert find_start(world).config.expert_layers == 0
    assert torch.equal(logits(world), reference(llama))


@pytest.mark.parametrize("every", [2, 4])
def test_a_llama_that_grew_experts_computes_what_it_did(llama: Path, world_of: Any, every: int) -> None:
    world = world_of(from_uri(llama, upcycle={"experts": 4, "every": every, "topK": 3}))
    config = find_start(world).config
    assert (config.expert_layers, config.num_local_experts, config.num_experts_per_tok) == (3 // (every - 1), 4, 3)
    torch.testing.assert_close(logits(world), reference(llama), rtol=1e-5, atol=1e-5)


def test_the_export_of_a_dense_training_grows_experts_too(llama: Path, world_of: Any, tmp_path: Path) -> None:
    model = ArcticModel(ArcticConfig.from_folder(llama))
    load_weights(model, llama)
    save_model(model, tmp_path / "export")
    world = world_of({"from": {"training": "dense"}, "upcycle": {"experts": 2, "every": 2}}, tmp_path / "export")
    torch.testing.assert_close(logits(world), reference(llama), rtol=1e-5, atol=1e-5)


def test_what_is_new_follows_from_the_seed(llama: Path, world_of: Any) -> None:
    world = world_of(from_uri(llama, upcycle={"experts": 4, "every": 2}))
    gates = [
        weights.tensor("model.layers.1.block_sparse_moe.gate.weight", (4, 16))  # type: ignore[union-attr]
        for weights in (find_start(world.model_copy(update={"spec": s})).weights for s in seeds(world))
    ]
    assert torch.equal(gates[0], gates[1])
    assert not torch.equal(gates[0], gates[2])
    assert math.isclose(float(gates[0].std()), 0.02, rel_tol=0.5)


def seeds(world: TrainingWorld) -> list[Any]:
    return [world.spec.model_copy(update={"seed": seed}) for seed in (3, 3, 4)]


def test_a_model_with_experts_cannot_grow_any(world_of: Any, tmp_path: Path) -> None:
    model = ArcticModel(
        ArcticConfig.preset("arctic-tiny").replace(vocab_size=16, num_hidden_layers=2, num_local_experts=2)
    )
    init_weights(model, 0)
    save_model(model, tmp_path / "arctic")
    with pytest.raises(Refused, match="2 of the model's layers have experts: only a model without any can grow them"):
        find_start(world_of(from_uri(tmp_path / "arctic", upcycle={"experts": 4})))


def test_weights_that_are_not_there_are_named(world_of: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"{tmp_path}/nowhere is not there: name a folder or a GGUF file"):
        find_start(world_of(from_uri(tmp_path / "nowhere")))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "run", 1)
    store.claim("u")
    return store


def commit(store: CheckpointStore, step: int, progress: dict[str, Any]) -> None:
    store.commit(Manifest(step, step, "s", False, 1, 1, "2026-01-01T00:00:00Z", {}, {}, progress))


def test_a_run_that_has_a_checkpoint_does_not_miss_the_weights_that_it_began_from(
    llama: Path, world_of: Any, store: CheckpointStore
) -> None:
    world = world_of(from_uri(llama, upcycle={"experts": 4, "every": 2}, ropeScaling={"type": "yarn", "factor": 2}))
    assert kept_config(store) is None
    first = find_start(world)
    commit(store, 1, {})  # as it was before checkpoints said it
    assert kept_config(store) is None
    commit(store, 2, {"config": first.config.to_dict()})
    (store.folder(2).parent / store.name(3)).mkdir()  # damaged
    kept = kept_config(store)
    assert kept == first.config
    assert find_start(world, kept) == Start(first.config, None, llama)
    shutil.rmtree(llama)
    start = find_start(world, kept)
    assert start.config == first.config
    model = build_model(start.config, Ranks(0, 1, 0, torch.device("cpu")), 1, 3, start.weights)
    assert {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()} == tensor_shapes(first.config)


def test_an_adapter_needs_what_it_stands_on_also_beside_its_checkpoint(llama: Path, world_of: Any) -> None:
    world = world_of(from_uri(llama, adapter={"lora": {"rank": 2, "alpha": 4}}))
    kept = find_start(world).config
    assert find_start(world, kept).weights is not None
    shutil.rmtree(llama)
    with pytest.raises(Refused, match="is not there"):
        find_start(world, kept)


class Encoder:
    vocab_size, bos = 30, 1

    def __init__(self, eos: int) -> None:
        self.eos = eos


@pytest.mark.parametrize(("eos", "kept"), [(7, [2, 7]), (5, 5)])
def test_a_model_that_ends_with_several_tokens_keeps_them(llama: Path, world_of: Any, eos: int, kept: Any) -> None:
    world = world_of(from_uri(llama))
    encoder: Any = Encoder(eos)
    assert fit_vocabulary(world, find_start(world).config, encoder).eos_token_id == kept


def test_a_model_is_stretched_before_its_first_step(llama: Path, world_of: Any) -> None:
    world = world_of(from_uri(llama, ropeScaling={"type": "linear", "factor": 2}))
    start = find_start(world)
    assert start.config == ArcticConfig.from_folder(llama).stretched("linear", 2)
    model = build_model(start.config, Ranks(0, 1, 0, torch.device("cpu")), 1, 0, start.weights)
    plain = ArcticModel(ArcticConfig.from_folder(llama))
    load_weights(plain, llama)
    with torch.no_grad():
        # Positions are divided by the factor: each second one is one of the model's own.
        stretched = model(TOKENS, 2 * torch.arange(7).expand(2, 7))
        torch.testing.assert_close(stretched, plain(TOKENS), rtol=1e-5, atol=1e-6)


def test_a_model_whose_positions_are_stretched_is_not_stretched_again(llama: Path, world_of: Any) -> None:
    content = json.loads((llama / "config.json").read_text()) | {"rope_scaling": {"type": "yarn", "factor": 4}}
    (llama / "config.json").write_text(json.dumps(content))
    with pytest.raises(Refused, match=r"rope_scaling is yarn already, by 4: .* leave model.ropeScaling out"):
        find_start(world_of(from_uri(llama, ropeScaling={"type": "linear", "factor": 2})))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", LLAMA | {"quantization_config": CACHE}),
        ("hf_quant_config.json", {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}),
    ],
)
@pytest.mark.parametrize("more", [{}, {"upcycle": {"experts": 2, "every": 2}}])
def test_weights_are_a_start_where_the_cache_alone_is_quantised(
    llama: Path, world_of: Any, more: dict[str, Any], file: str, content: dict[str, Any]
) -> None:
    before = logits(world_of(from_uri(llama, **more)))
    (llama / file).write_text(json.dumps(content))
    assert torch.equal(logits(world_of(from_uri(llama, **more))), before)


@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt"])
@pytest.mark.parametrize("more", [{}, {"upcycle": {"experts": 2, "every": 2}}])
def test_weights_that_were_rounded_are_no_start(
    llama: Path, world_of: Any, tmp_path: Path, layout: Layout, more: dict[str, Any]
) -> None:
    quantize_checkpoint(llama, tmp_path / "fp8", Quantization(layout, "tensor"))
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    if layout == "modelopt":  # says it in a file of its own too
        del config["quantization_config"]
        (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"fp8: its weights are FP8 as .* stores it.* the checkpoint that they are of"):
        find_start(world_of(from_uri(tmp_path / "fp8", **more)))
