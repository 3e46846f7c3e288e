from __future__ import annotations

import json
import os
import re
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.names import llama_name, tensor_shapes
from arctic_model.parallel import WHOLE, TensorSlice
from arctic_model.quantization import Quantization
from arctic_model.quantize import quantize_checkpoint
from arctic_model.tensor_files import TensorFile
from arctic_model.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    CheckpointError,
    TensorEntry,
    atomic_folder,
    load_weights,
    plan_shards,
    save_model,
    take_fp8_form,
    take_share,
    write_weights,
)


@pytest.fixture
def folder(model, tmp_path):
    save_model(model, tmp_path / "checkpoint", max_shard_bytes=8_000)
    return tmp_path / "checkpoint"


def on_meta(config, *arguments, **options):
    with torch.device("meta"):
        return ArcticModel(config, *arguments, **options)


def equal(one, other):
    other_state = other.state_dict()
    return all(torch.equal(value, other_state[name]) for name, value in one.state_dict().items())


def test_what_is_saved_in_shards_loads_equal(config, model, folder):
    loaded = on_meta(config)
    load_weights(loaded, folder)
    assert equal(model, loaded)
    assert ArcticConfig.from_folder(folder) == config.replace(torch_dtype="float32")


def test_other_software_reads_the_shards(config, model, folder):
    index = json.loads((folder / INDEX_FILE).read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files][-1] == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    tensors = {}
    for file in files:
        content = load_file(file)
        assert {index["weight_map"][name] for name in content} == {file.name}
        assert sum(tensor.nbytes for tensor in content.values()) <= 8_000 or len(content) == 1
        tensors |= content
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tensor_shapes(config)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    stacked = model.state_dict()["model.layers.3.block_sparse_moe.experts.w2"]
    assert torch.equal(tensors["model.layers.3.block_sparse_moe.experts.1.w2.weight"], stacked[1])


def test_what_other_software_wrote_loads(config, model, folder, tmp_path):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    (tmp_path / "one").mkdir()
    save_file(tensors, tmp_path / "one" / SINGLE_FILE)
    shutil.copy(folder / "config.json", tmp_path / "one")
    loaded = on_meta(config)
    load_weights(loaded, tmp_path / "one")
    assert equal(model, loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_keep_their_dtype(config, model, folder, tmp_path, dtype):
    loaded = on_meta(config).to(dtype)
    load_weights(loaded, folder)
    assert equal(model.to(dtype), loaded)
    save_model(loaded, tmp_path / "half")
    assert [path.name for path in (tmp_path / "half").glob("*.safetensors")] == [SINGLE_FILE]
    assert load_file(tmp_path / "half" / SINGLE_FILE)["lm_head.weight"].dtype == dtype


def test_a_slice_opens_only_the_files_that_it_needs(config, model, folder):
    index = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    wanted = {file for name, file in index.items() if name.startswith("model.layers.1.")}
    for file in set(index.values()) - wanted:
        (folder / file).unlink()
    part = on_meta(config, range(1, 2), embed=False, lm_head=False)
    load_weights(part, folder)
    assert equal(part, model)


def test_a_share_of_the_experts_is_loaded(config, model, folder):
    part = on_meta(config)
    for layer in (1, 3):
        experts = part.layers[layer].block_sparse_moe.experts
        for name, weight in list(experts.named_parameters()):
            setattr(experts, name, torch.nn.Parameter(weight[:2]))
    load_weights(part, folder, first_expert=2)
    name = "model.layers.1.block_sparse_moe.experts.w3"
    assert torch.equal(part.state_dict()[name], model.state_dict()[name][2:])


RANKS = 2


def shared(model, folder, share, weights="fp32"):
    """What a tensor rank loads."""
    part = on_meta(model.config)
    if weights == "fp8":
        take_fp8_form(part, folder)
    take_share(part, share)
    load_weights(part, folder, share=share)
    return part.state_dict()


def own(name, whole, share):
    """What a tensor rank should have of a parameter or its scales."""
    if whole.dim() == 3 and share.whole_experts:
        half = len(whole) // RANKS
        return whole[half * share.rank : half * (share.rank + 1)]
    if re.search(r"(o_proj|w2)(\.weight)?$", name):
        return whole.chunk(RANKS, -1)[share.rank]
    if re.search(r"([qkv]_proj|w[13])(\.weight)?$", name):
        return whole.chunk(RANKS, -2)[share.rank]
    return whole


@pytest.mark.parametrize("whole_experts", [False, True])
@pytest.mark.parametrize("rank", range(RANKS))
def test_a_tensor_rank_has_its_slice_and_no_more(model, folder, rank, whole_experts, monkeypatch):
    share, read = TensorSlice(rank, RANKS, whole_experts), Counter()
    file_read = TensorFile.read

    def counted(file, name, rows=slice(None)):
        values = file_read(file, name, rows)
        read[name] += values.numel()
        return values

    monkeypatch.setattr(TensorFile, "read", counted)
    found = shared(model, folder, share)
    for name, whole in model.state_dict().items():
        assert torch.equal(found[name], own(name, whole, share)), name
        assert found[name].untyped_storage().nbytes() == own(name, whole, share).numel() * 4
    assert read["model.layers.1.self_attn.q_proj.weight"] == 24 * 24 // 2
    assert read["model.layers.1.self_attn.o_proj.weight"] == 24 * 24
    experts = [name for name in read if ".experts." in name and name.endswith("w1.weight")]
    assert sum(read[name] for name in experts) == sum(
        whole.numel() // 2 for name, whole in model.state_dict().items() if name.endswith("experts.w1")
    )


@pytest.mark.parametrize("stored", [None, Quantization("compressed-tensors", "channel"), Quantization("fp8", "block")])
@pytest.mark.parametrize("rank", range(RANKS))
def test_a_tensor_rank_has_the_numbers_and_scales_of_the_whole_in_fp8(model, folder, tmp_path, rank, stored):
    if stored is not None:
        stored = replace(stored, block=(2, 2))
        quantize_checkpoint(folder, tmp_path / "fp8", stored)
        folder = tmp_path / "fp8"
    whole, share = shared(model, folder, WHOLE, "fp8"), TensorSlice(rank, RANKS)
    found = shared(model, folder, share, "fp8")
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        scaled = name.endswith("_scale")
        if not scaled:
            assert torch.equal(found[name].float(), own(name, values.float(), share)), name
            continue
        # Blocks have scales by rows and by columns, channels by rows alone.
        blocks = stored is not None and stored.scale_block is not None
        by_rows = re.search(r"([qkv]_proj|w[13])(\.weight)?_scale$", name)
        wanted = (
            own(name.removesuffix("_scale"), values if blocks else values[..., None], share)
            if (blocks or by_rows)
            else values
        )
        assert torch.equal(found[name], wanted.view(found[name].shape)), name


def test_a_slice_whose_edge_is_within_a_block_is_refused(model, folder, tmp_path):
    quantize_checkpoint(folder, tmp_path / "fp8", Quantization("fp8", "block", (8, 8)))
    with pytest.raises(ValueError, match=r"tensor is 2: of .*q_proj.* have 12 of 24, and 8 share a scale .* write"):
        shared(model, tmp_path / "fp8", TensorSlice(0, RANKS), "fp8")


def rewrite(folder, change):
    """Replace the shards by one file whose tensors were changed."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / INDEX_FILE).unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("model.norm.weight"), "misses model.norm.weight of the model"),
        (
            lambda t: [t.pop(f"model.layers.1.block_sparse_moe.experts.{n}.w1.weight") for n in (1, 2)],
            "experts.1.w1.weight and 1 other tensor of the model",
        ),
        (lambda t: t.update({"model.extra": torch.ones(2)}), "has model.extra that the model has no place for"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(5)}),
            r"model.norm.weight has the shape \[5\] where the model has \[24\]",
        ),
    ],
)
def test_tensors_that_are_not_the_model_s_are_named(config, folder, change, sentence):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_weights(on_meta(config), folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_with_a_number_that_is_none_is_named(config, folder, value):
    name = "model.layers.1.self_attn.q_proj.weight"

    def spoil(tensors):
        tensors[name][3, 1] = value

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        load_weights(on_meta(config), folder)


def test_a_file_cut_short_is_named(config, folder):
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"{file} is damaged or was cut short .*: copy it again"):
        load_weights(on_meta(config), folder)


def test_a_file_that_the_index_names_and_is_not_there_is_named(config, folder):
    file = sorted(folder.glob("*.safetensors"))[0]
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file} is in the index and not in the folder"):
        load_weights(on_meta(config), folder)


def test_a_tensor_that_the_index_places_wrongly_is_named(config, folder):
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight cannot be read"):
        load_weights(on_meta(config), folder)


def test_an_index_that_names_a_file_elsewhere_is_refused(config, folder):
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names \.\./elsewhere\.safetensors: not a file of its folder"):
        load_weights(on_meta(config), folder)


def test_a_folder_without_weights_says_so(config, folder):
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="it holds no weights"):
        load_weights(on_meta(config), folder)


def test_a_folder_that_exists_is_never_written_over(model, folder):
    with pytest.raises(FileExistsError, match="exists: name a new folder"):
        save_model(model, folder)


def test_a_part_of_a_model_is_not_saved_as_a_whole(config, tmp_path):
    with pytest.raises(ValueError, match=r"no model\.layers\.0\..* not a whole model; gather it"):
        save_model(ArcticModel(config, range(1, 4)), tmp_path / "part")
    halved = ArcticModel(config)
    experts = halved.layers[1].block_sparse_moe.experts
    experts.w1 = torch.nn.Parameter(experts.w1[:2].detach())
    with pytest.raises(ValueError, match=r"no .*experts\.2\.w1\.weight"):
        save_model(halved, tmp_path / "part")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail():
        with atomic_folder(tmp_path / "new") as temporary:
            (temporary / "half").write_text("x")
            assert not (tmp_path / "new").exists()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_machine_whose_process_has_the_same_number_takes_nothing_away(tmp_path, monkeypatch):
    """Each container counts its processes from 1, and a folder may be shared."""
    with atomic_folder(tmp_path / "new") as temporary:
        (temporary / "ours").touch()
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="other"))
        with pytest.raises(OSError, match="disk full"), atomic_folder(tmp_path / "new"):
            raise OSError("disk full")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ours"]


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    entries = [TensorEntry(f"t{number}", (256, 1024), torch.float32) for number in range(8)]
    tracemalloc.start()
    write_weights(tmp_path, entries, lambda name: torch.full((256, 1024), float(name[1:])))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert load_file(tmp_path / SINGLE_FILE)["t7"].unique().tolist() == [7.0]


def test_a_tensor_that_is_not_as_announced_is_refused(tmp_path):
    entry = TensorEntry("t", (2, 2), torch.float32)
    with pytest.raises(ValueError, match="announced as"):
        write_weights(tmp_path, [entry], lambda _: torch.zeros(3))


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 60))
def test_shards_keep_order_and_bound(sizes, bound):
    entries = [TensorEntry(str(place), (size,), torch.float32) for place, size in enumerate(sizes)]
    shards = plan_shards(entries, 4 * bound)
    assert [entry for shard in shards for entry in shard] == entries
    for shard, following in zip(shards, [*shards[1:], None], strict=True):
        total = sum(entry.nbytes for entry in shard)
        assert total <= 4 * bound or len(shard) == 1
        assert following is None or total + following[0].nbytes > 4 * bound


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_checkpoint_loads_as_an_arctic(tmp_path, tied):
    llama = {
        "model_type": "llama", "hidden_size": 18, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 30, "tie_word_embeddings": tied,
    }  # fmt: skip
    config = ArcticConfig.from_dict(llama)
    tensors = {llama_name(name): torch.randn(shape) for name, shape in tensor_shapes(config).items()}
    assert "model.layers.1.mlp.gate_proj.weight" in tensors
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(1)
    if tied:
        del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / SINGLE_FILE)
    (tmp_path / "config.json").write_text(json.dumps(llama))

    model = on_meta(Checkpoint(tmp_path).config)
    load_weights(model, tmp_path)
    state = model.state_dict()
    head = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
    assert torch.equal(state["lm_head.weight"], head)
    for ours, theirs in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        loaded = state[f"model.layers.1.block_sparse_moe.mlp.{ours}.weight"]
        assert torch.equal(loaded, tensors[f"model.layers.1.mlp.{theirs}.weight"])
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    save_model(model, tmp_path / "arctic")
    assert json.loads((tmp_path / "arctic" / "config.json").read_text())["model_type"] == "arctic"
    load_weights(on_meta(ArcticConfig.from_folder(tmp_path / "arctic")), tmp_path / "arctic")


def test_what_is_written_is_never_tied(tmp_path, config):
    """The two matrices are trained apart: a reader that believed in a tie would drop one of them."""
    tied = ArcticModel(config.replace(tie_word_embeddings=True))
    init_weights(tied, seed=3)
    save_model(tied, tmp_path / "saved")
    assert ArcticConfig.from_folder(tmp_path / "saved").tie_word_embeddings is False
    loaded = on_meta(config)
    load_weights(loaded, tmp_path / "saved")
    assert equal(tied, loaded)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float8_e4m3fn", "float64"])
def test_weights_that_are_stored_in_another_form_are_refused(tmp_path, config, dtype):
    model = ArcticModel(config)
    save_model(model, tmp_path / "saved")
    file = tmp_path / "saved" / SINGLE_FILE
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"is stored as [A-Z0-9_]+: save it unquantised, as F32, BF16 or F16"):
        load_weights(on_meta(config), tmp_path / "saved")


def test_every_parameter_gets_memory(config, model):
    loaded = on_meta(config)
    init_weights(loaded, seed=3)
    assert equal(model, loaded)
    assert not any(value.is_meta for value in loaded.state_dict().values())


def test_marks_on_parameters_outlive_the_meta_device(config, folder):
    loaded = on_meta(config)
    loaded.lm_head.weight.group_name = "experts"
    loaded.model.norm.weight.requires_grad_(False)
    load_weights(loaded, folder)
    assert loaded.lm_head.weight.group_name == "experts"
    assert not loaded.model.norm.weight.requires_grad
