import json
import os
from pathlib import Path

import gguf
import pytest
import torch
from click.testing import CliRunner
from models import byte_tokenizer, write_model, write_plain_model
from safetensors.torch import save_file

from arctic_cli.main import main
from arctic_model.config import ArcticConfig
from arctic_model.names import llama_name, tensor_shapes


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return done.exit_code, done.output


def write_llama(folder: Path, **changes: object) -> Path:
    config = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "vocab_size": 300, **changes,
    }  # fmt: skip
    folder.mkdir()
    shapes = tensor_shapes(ArcticConfig.from_dict(config))
    save_file({llama_name(name): torch.randn(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def test_a_llama_becomes_an_arctic(tmp_path: Path) -> None:
    llama, arctic = write_llama(tmp_path / "llama"), tmp_path / "arctic"
    code, said = run("import", llama, arctic, "--experts", 4, "--hybrid-every", 3)
    assert (code, said.splitlines()[-1]) == (0, f"{arctic}: 4 dense layers and 2 hybrid ones of 4 experts")
    assert ArcticConfig.from_folder(arctic).num_local_experts == 4
    assert (arctic / "tokenizer.json").is_file()
    code, said = run("import", llama, arctic, "--hybrid-every", 3)
    assert (code, said.splitlines()[-1]) == (1, f"Error: {arctic} exists: name a new folder, or remove this one")


def test_what_is_made_can_be_read_by_pods_whatever_the_umask(tmp_path: Path) -> None:
    llama, arctic = write_llama(tmp_path / "llama"), write_plain_model(tmp_path / "model")
    made = [tmp_path / name for name in ("imported", "fp8", "model.gguf")]
    before = os.umask(0o077)
    try:
        assert run("import", llama, made[0], "--experts", 4, "--hybrid-every", 3)[0] == 0
        assert run("quantize", arctic, made[1])[0] == 0
        assert run("export", "--gguf", arctic, made[2])[0] == 0
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    for path in (*made, *made[0].iterdir(), *made[1].iterdir()):
        wanted = 0o755 if path.is_dir() else 0o644
        assert (path.stat().st_mode & wanted) == wanted, path


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere", "nowhere is not there: name a folder or a GGUF file"),
        ("mistral", "a LlamaForCausalLM alone can become an Arctic"),
    ],
)
def test_what_can_not_be_imported_is_a_sentence(tmp_path: Path, source: str, sentence: str) -> None:
    llama = write_llama(tmp_path / "mistral")
    config = json.loads((llama / "config.json").read_text()) | {"model_type": "mistral"}
    (llama / "config.json").write_text(json.dumps(config))
    code, said = run("import", tmp_path / source, tmp_path / "arctic")
    assert code == 1
    assert sentence in said
    assert not (tmp_path / "arctic").exists()


def test_an_arctic_goes_to_llama_cpp_with_its_tokenizer(tmp_path: Path) -> None:
    folder, file = write_plain_model(tmp_path / "model"), tmp_path / "model.gguf"
    assert run("export", "--gguf", folder, file, "--weights", "Q8_0")[0] == 0
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == "arctic"
    assert reader.fields["tokenizer.ggml.model"].contents() == "gpt2"
    bare = tmp_path / "bare.gguf"
    assert run("export", "--gguf", folder, bare, "--no-tokenizer")[0] == 0
    assert gguf.GGUFReader(bare).fields["tokenizer.ggml.model"].contents() == "none"


def test_what_llama_cpp_has_not_is_a_sentence(tmp_path: Path) -> None:
    write_model(tmp_path / "model", byte_tokenizer(), vocab_size=300)
    code, said = run("export", "--gguf", tmp_path / "model", tmp_path / "model.gguf")
    assert code == 1
    assert "moe_layer_frequency is 2, and llama.cpp's Arctic has experts in every layer" in said


def test_a_checkpoint_becomes_fp8_and_what_that_costs_is_said(tmp_path: Path) -> None:
    folder, text = write_plain_model(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("a text to be read, " * 30)
    code, said = run("quantize", folder, tmp_path / "fp8", "--scales", "tensor", "--text", text)
    assert code == 0, said
    layers = [line for line in said.splitlines() if line.startswith("layer ")]
    assert len(layers) == ArcticConfig.from_folder(folder).num_hidden_layers
    assert all("weights " in line and "hidden states " in line for line in layers)
    assert "perplexity " in said
    assert said.splitlines()[-1] == f"{tmp_path / 'fp8'}: FP8 as compressed-tensors stores it, a scale a tensor"
    assert (tmp_path / "fp8" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--layout", "fp8"], "--layout fp8 has a scale a tensor or a block: write --scales tensor or block"),
        (["--text", "short.txt"], "short.txt is less than two tokens: name a longer text"),
    ],
)
def test_what_can_not_be_quantised_so_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("a")
    code, said = run("quantize", write_plain_model(tmp_path / "model"), "fp8", *words)
    assert (code, said.splitlines()[-1]) == (1, f"Error: {sentence}")
    assert not Path("fp8").exists()
