"""What a file of llama.cpp's `arctic` says; that llama.cpp computes the same with it is in `tests/parity`."""

import os
import tracemalloc

import gguf
import numpy as np
import pytest
import torch

from arctic_model.config import ArcticConfig
from arctic_model.gguf.names import to_halves, to_pairs
from arctic_model.gguf.writer import export_gguf
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.weights import save_model


@pytest.fixture
def hybrid(config: ArcticConfig) -> ArcticConfig:
    return config.replace(moe_layer_frequency=1, hidden_size=96, intermediate_size=40)


def saved(config, folder):
    model = ArcticModel(config)
    init_weights(model, seed=1)
    save_model(model.to(torch.bfloat16), folder)
    return model


def read(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_every_tensor_is_there_and_experts_are_stacked(hybrid, tmp_path):
    model = saved(hybrid, tmp_path / "checkpoint")
    shares = []
    export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", progress=shares.append)
    assert (shares[-1], shares) == (1, sorted(shares))
    tensors = read(tmp_path / "model.gguf")
    assert len(tensors) == 3 + 4 * 14
    stack = tensors["blk.3.ffn_down_exps.weight"]
    assert stack.tensor_type.name == "F32"
    assert np.array_equal(stack.data, model.layers[3].block_sparse_moe.experts.w2.detach().float().numpy())
    keys = model.layers[0].self_attn.k_proj.weight.detach().float().numpy()
    assert np.array_equal(to_halves(tensors["blk.0.attn_k.weight"].data, hybrid.head_dim), keys)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert fields["arctic.expert_count"].contents() == 4


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_matrices_take_the_form_that_is_asked_for_but_not_norms_gates_and_odd_rows(hybrid, tmp_path, kind):
    saved(hybrid, tmp_path / "checkpoint")
    export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", weights=kind)
    for name, tensor in read(tmp_path / "model.gguf").items():
        kept = "norm" in name or "gate_inp" in name or (kind == "Q8_0" and "ffn_down_exps" in name)  # rows of 40
        assert tensor.tensor_type.name == ("F32" if kept else kind), name


def test_rows_change_places_and_back():
    weight = np.random.default_rng(0).standard_normal((24, 5))
    assert np.array_equal(to_halves(to_pairs(weight, 6), 6), weight)
    assert to_pairs(np.arange(6.0)[:, None], 6)[:, 0].tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"moe_layer_frequency": 2}, "moe_layer_frequency is 2, and llama.cpp's Arctic has experts in every layer"),
        ({"sliding_window": 8}, "llama.cpp's Arctic attends to everything"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is dynamic"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16.0}}, "has beta_fast of its own"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "has truncate of its own"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0}},
            "has mscale, mscale_all_dim of its own",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(hybrid, tmp_path, change, sentence):
    saved(hybrid.replace(**change), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=sentence):
        export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_file_is_never_written_over_and_never_half(hybrid, tmp_path):
    saved(hybrid, tmp_path / "checkpoint")
    (tmp_path / "there.gguf").touch()
    with pytest.raises(FileExistsError, match="name a new file"):
        export_gguf(tmp_path / "checkpoint", tmp_path / "there.gguf")

    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "there.gguf"]


@pytest.mark.parametrize(("kind", "value"), [("F16", 7e4), ("F16", -7e4), ("BF16", 3.4e38), ("Q8_0", 1e7)])
def test_a_weight_that_a_form_can_not_hold_is_refused_by_name(hybrid, tmp_path, kind, value):
    model = ArcticModel(hybrid)
    init_weights(model, seed=1)
    with torch.no_grad():
        model.layers[2].block_sparse_moe.experts.w1[3][0, 1] = value
    save_model(model, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=rf"layers\.2\..*experts\.3\.w1\.weight holds .*more than {kind} can"):
        export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", weights=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf")


def test_the_experts_of_a_layer_are_in_memory_once(hybrid, tmp_path):
    wide = hybrid.replace(num_local_experts=32, num_hidden_layers=1, intermediate_size=256)
    saved(wide, tmp_path / "checkpoint")
    tracemalloc.start()
    export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", weights="F16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 32 * 256 * 96 * 2


def test_a_file_is_durable_before_it_has_its_name(hybrid, tmp_path, monkeypatch):
    saved(hybrid, tmp_path / "checkpoint")
    synced, sync = [], os.fsync

    def record(descriptor):
        sync(descriptor)
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "model.gguf").exists()))

    monkeypatch.setattr(os, "fsync", record)
    export_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf")
    (content, early), (folder, late) = synced
    assert (".model.gguf." in content, early) == (True, False)
    assert (folder, late) == (str(tmp_path), True)
