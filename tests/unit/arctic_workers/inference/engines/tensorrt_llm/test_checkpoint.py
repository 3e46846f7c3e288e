"""What is read of a checkpoint folder, what is written instead, and the FP8 weights that are made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arctic_api.inference import Attention
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.quantization import Quantization
from arctic_model.quantize import quantize_checkpoint
from arctic_model.weights import save_model
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.tensorrt_llm.checkpoint import (
    Stored,
    prepare_folder,
    read_stored,
    served_config,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with weights, both kinds of layers in it, and sizes that are no multiples of a block."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    sizes = {"hidden_size": 144, "intermediate_size": 75, "num_attention_heads": 6}
    model = ArcticModel(ArcticConfig.preset("arctic-tiny").replace(moe_layer_frequency=2, **sizes))
    init_weights(model, seed=5)
    save_model(model, path)
    (path / "tokenizer.json").write_text("{}")
    return path


def folder(path: Path, quantization: Any = None, modelopt: Any = None) -> Path:
    path.mkdir()
    content = ArcticConfig().to_dict() | {"auto_map": {"AutoConfig": "configuration_arctic.ArcticConfig"}}
    if quantization is not None:
        content["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(content))
    if modelopt is not None:
        (path / "hf_quant_config.json").write_text(json.dumps({"quantization": modelopt}))
    return path


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("quantization", "modelopt", "weights", "kv_cache"),
    [
        (None, None, "plain", None),
        (BLOCKS, None, "fp8-block", None),
        (None, {"quant_algo": "FP8"}, "fp8-tensor", None),
        (None, {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "fp8-tensor", "FP8"),
        (None, {"quant_algo": "fp8_pb_wo"}, "fp8-block", None),
    ],
)
def test_the_format_is_the_checkpoints(
    tmp_path: Path, quantization: Any, modelopt: Any, weights: str, kv_cache: str | None
) -> None:
    stored = read_stored(folder(tmp_path / "model", quantization, modelopt))
    assert (stored.weights, stored.kv_cache, stored.config.num_local_experts) == (weights, kv_cache, 128)
    assert served_config(stored, Attention()).get("quantization_config") == quantization


CACHE = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8, "type": "float"}}


@pytest.mark.parametrize(
    ("quantization", "modelopt"),
    [
        (CACHE, None),
        (None, {"quant_algo": None, "kv_cache_quant_algo": "FP8"}),
        ({"quant_method": "modelopt", "kv_cache_scheme": CACHE["kv_cache_scheme"]}, None),
    ],
)
def test_where_the_cache_alone_is_quantised_the_weights_are_plain_and_the_manifest_says_the_rest(
    tmp_path: Path, quantization: Any, modelopt: Any
) -> None:
    """TensorRT-LLM takes no checkpoint that says how it is quantised and names no form of weights."""
    stored = read_stored(folder(tmp_path / "model", quantization, modelopt))
    assert (stored.weights, stored.kv_cache) == ("plain", None)
    prepare_folder(stored, tmp_path / "run", served_config(stored, Attention()))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    assert "quantization_config" not in json.loads((tmp_path / "run/config.json").read_text())


@pytest.mark.parametrize(
    ("quantization", "modelopt", "sentence"),
    [
        ({"quant_method": "fp8"}, None, "weight_block_size .*quantize FOLDER NEW_FOLDER"),
        ({"quant_method": "mxfp4", "weight_block_size": [128, 128]}, None, "takes quant_method fp8"),
        (None, {"quant_algo": "NVFP4"}, "quant_algo is 'NVFP4'; write FP8"),
        (None, {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}, "kv_cache_quant_algo is 'NVFP4'"),
        (None, [], "quant_algo is None"),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, quantization: Any, modelopt: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        read_stored(folder(tmp_path / "model", quantization, modelopt))
    with pytest.raises(Refused, match=r"config\.json is not there"):
        read_stored(tmp_path)


def served(config: ArcticConfig, **attention: Any) -> dict[str, Any]:
    return served_config(Stored(Path("/models/a"), config, "plain"), Attention.model_validate(attention))


def test_the_served_configuration_says_what_the_manifest_says_of_attention() -> None:
    plain = served(ArcticConfig(torch_dtype="float32"))
    assert (plain["torch_dtype"], plain["head_dim"], plain["sliding_window"]) == ("bfloat16", 128, None)
    assert (plain["max_position_embeddings"], plain["rope_scaling"]) == (4096, None)
    assert served(ArcticConfig(), window=1024)["sliding_window"] == 1024
    assert served(ArcticConfig(), window=4096)["sliding_window"] is None
    assert served(ArcticConfig(sliding_window=512))["sliding_window"] == 512
    long = served(ArcticConfig(), maxLength=16384, ropeScaling={"type": "yarn", "factor": 4})
    assert long["max_position_embeddings"] == 16384
    wanted = {"rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert long["rope_scaling"] == wanted


def test_the_models_own_stretching_is_kept_where_tensorrt_llm_has_it() -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}
    kept = served(ArcticConfig(rope_scaling=yarn))["rope_scaling"]
    assert kept == {**yarn, "type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}
    with pytest.raises(Refused, match="attention_factor"):
        served(ArcticConfig(rope_scaling={**yarn, "attention_factor": 1.3}))
    scales = {"mscale": 1.0, "mscale_all_dim": 0.5}
    kept = served(ArcticConfig(rope_scaling={**yarn, **scales}))["rope_scaling"]
    assert {name: kept[name] for name in scales} == scales
    for one in (*({name: 0.5} for name in scales), scales | {"mscale": 0.0}):
        kept = served(ArcticConfig(rope_scaling={**yarn, **one}))["rope_scaling"]
        assert not scales.keys() & kept.keys(), "they count together alone"
    with pytest.raises(Refused, match="truncate"):
        served(ArcticConfig(rope_scaling={**yarn, "truncate": False}))
    with pytest.raises(Refused, match="stretched already"):
        served(ArcticConfig(rope_scaling=yarn), ropeScaling={"type": "yarn", "factor": 2})


def test_the_prepared_folder_has_the_checkpoints_files_and_the_served_configuration(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", BLOCKS)
    (source / "model.safetensors").write_bytes(b"weights")
    stored = read_stored(source)
    prepare_folder(stored, tmp_path / "run/model", served_config(stored, Attention(window=64)))
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == b"weights"
    written = json.loads((tmp_path / "run/model/config.json").read_text())
    assert (written["sliding_window"], "auto_map" in written) == (64, False)
    assert "sliding_window" in json.loads((source / "config.json").read_text())
    assert read_stored(tmp_path / "run/model").weights == "fp8-block"


def test_what_arctic_quantize_makes_is_read_as_fp8_blocks(tmp_path: Path, published: Path) -> None:
    quantize_checkpoint(published, tmp_path / "fp8", Quantization("fp8", "block"))
    made = tmp_path / "fp8"
    assert read_stored(made).weights == "fp8-block"
    assert (made / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    before, after = load_file(published / "model.safetensors"), load_file(made / "model.safetensors")
    quantised = {name for name, tensor in after.items() if tensor.dtype == torch.float8_e4m3fn}
    assert {
        name for name in before if name.endswith((".w1.weight", ".w2.weight", ".w3.weight", "_proj.weight"))
    } == quantised
    assert set(after) == set(before) | {f"{name}_scale_inv" for name in quantised}
    assert {after[name].dtype for name in set(before) - quantised} == {torch.bfloat16}
