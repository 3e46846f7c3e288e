"""A small real model, imported, against llama.cpp on the file that it came in; and what comes of it in our files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
import torch
from parity import logits_of

from arctic_cli.small_model import smollm2
from arctic_model.config import ArcticConfig
from arctic_model.gguf.reader import GgufLlama
from arctic_model.gguf.tokenizer import tokenizer_metadata
from arctic_model.llama import import_llama
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights
from arctic_workers.inference.http.text import Text

Ask = Callable[..., dict[str, Any]]
QUESTION = "What is the capital of France?"
TEXT = "Zwölf Boxkämpfer, 1234567 × 3.1e-4;\n\tdef f(x): return x  # it's 日本語 🙂 <|im_start|>user\n"
ROUNDING = 2e-5
"""Of the greatest logit: sums in another order through 30 layers; 2.4e-6 was seen."""
EIGHT_BITS = 0.1
"""Root mean square, of the logits'; llama.cpp rounds what it multiplies with quantised weights. 0.047 was seen."""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "arctic"
    import_llama(GgufLlama(smollm2()), folder, experts=4, every=6)
    return folder


@pytest.fixture(scope="module")
def model(imported: Path) -> ArcticModel:
    with torch.device("meta"):
        made = ArcticModel(ArcticConfig.from_folder(imported))
    load_weights(made, imported)
    return made


def widen(source: Path, target: Path) -> None:
    """Write a GGUF file anew with its numbers in F32, so that llama.cpp computes with all of them."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.")):
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prompt_of(text: Text) -> list[int]:
    return text.encode(text.chat.render([{"role": "user", "content": QUESTION}]), special=not text.chat.is_marked)


@pytest.mark.timeout(900)
def test_logits_and_answer_are_those_of_the_original(
    ask: Ask, imported: Path, model: ArcticModel, tmp_path: Path
) -> None:
    text = Text(imported)
    prompt = prompt_of(text)
    widen(smollm2(), tmp_path / "wide.gguf")
    theirs = ask(tmp_path / "wide.gguf", prompt, 8)
    logits = logits_of(model, prompt)
    assert np.abs(logits - theirs["logits"]).max() <= ROUNDING * np.abs(logits).max()
    assert text.decode(theirs["greedy"].tolist()) == "The capital of France is Paris."
    quantised = ask(smollm2(), prompt, 1)
    assert np.square(logits - quantised["logits"]).mean() <= EIGHT_BITS**2 * np.square(logits).mean()


def test_text_becomes_the_same_tokens(ask: Ask, imported: Path) -> None:
    text = Text(imported)
    assert text.encode(TEXT) == ask(smollm2(), [1], 1, TEXT)["words"].tolist()
    assert text.decode(text.encode(TEXT), special=True) == TEXT


def test_its_tokenizer_goes_back_as_it_came(imported: Path) -> None:
    reader = gguf.GGUFReader(smollm2())
    original = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    made = tokenizer_metadata(imported, json.loads((imported / "config.json").read_text())["vocab_size"])
    original.pop("tokenizer.ggml.add_space_prefix")
    assert made == original


@pytest.mark.timeout(600)
def test_it_is_served_and_knows_the_capital_of_france(imported: Path, tmp_path: Path) -> None:
    manifest = {
        "apiVersion": "arctic.dev/v1alpha1",
        "kind": "ArcticInference",
        "metadata": {"name": "smollm2"},
        "spec": {
            "model": {"uri": imported.as_uri()},
            "engine": {"name": "native"},
            "quantization": {"weights": "bf16"},  # in FP8 so small a model answers otherwise
            "attention": {"maxLength": 256},
        },
    }
    (tmp_path / "manifest.yaml").write_text(json.dumps(manifest))
    command = [sys.executable, "-c", "from arctic_cli.main import main; main()", "serve", "-f", "manifest.yaml"]
    arctic = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert arctic.stdout is not None
        url = next(word for line in arctic.stdout for word in line.split() if word.startswith("http://"))
        next(line for line in arctic.stdout if "Ready on port" in line)
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 16}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=120).json()
    finally:
        arctic.terminate()
        arctic.communicate()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
