"""The library peft, unchanged: it loads adapters of ours, we load its own, and both compute the same."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.llama import Grown, open_llama
from arctic_model.lora import B, add_adapter, merged
from arctic_model.model import ArcticModel
from arctic_model.peft import read_adapter, write_adapter
from arctic_model.weights import load_weights, save_model

RUNNER = Path(__file__).with_name("peft_runner.py")
Logits = np.ndarray[Any, Any]
TOKENS = torch.arange(14).view(2, 7)
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=40, hidden_size=16, intermediate_size=12, num_hidden_layers=3, moe_layer_frequency=2, num_local_experts=2
)


@pytest.fixture(scope="module")
def folder(peft_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What peft has made of our model and of our adapter, which are in it too."""
    folder = tmp_path_factory.mktemp("adapters")
    for name in ("ours", "llama", "out"):
        (folder / name).mkdir()
    model = ArcticModel(CONFIG)
    init_weights(model, 1)
    save_model(model, folder / "arctic")
    add_adapter(model, 3, 7, seed=2)
    tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if f".{B}." in name:
                tensor.normal_(generator=torch.Generator().manual_seed(len(name)))
        write_adapter(folder / "ours", {n: t.detach() for n, t in tensors.items()}, 3, 7, str(folder / "arctic"))
        np.save(folder / "ours.npy", model(TOKENS).numpy())
    command = [str(peft_python), str(RUNNER), *(str(folder / name) for name in ("arctic", "ours", "llama", "out"))]
    subprocess.run(command, check=True)
    return folder


def logits_of(model: ArcticModel, adapter: Path | None = None) -> Logits:
    """Logits of a model, with an adapter merged into it."""
    with torch.no_grad():
        for name, added in read_adapter(adapter, model.config).items() if adapter else ():
            weight = model.get_parameter(f"{name}.weight")
            weight.copy_(merged(weight, added.a, added.b, added.scale))
        logits: Logits = model(TOKENS).numpy()
        return logits


def of_folder(folder: Path) -> ArcticModel:
    with torch.device("meta"):
        model = ArcticModel(ArcticConfig.from_folder(folder))
    load_weights(model, folder)
    return model


def assert_same(found: Logits, expected: Logits, plain: Logits) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - expected).max() > 100 * 1e-5  # the adapter does something


def test_peft_loads_an_adapter_of_ours_and_computes_the_same(folder: Path) -> None:
    plain = logits_of(of_folder(folder / "arctic"))
    assert_same(np.load(folder / "out" / "logits.npz")["given"], np.load(folder / "ours.npy"), plain)


def test_an_adapter_of_pefts_is_loaded_and_computes_the_same(folder: Path) -> None:
    """With ranks and scales that differ from module to module."""
    plain = logits_of(of_folder(folder / "arctic"))
    found = logits_of(of_folder(folder / "arctic"), folder / "out" / "arctic")
    assert_same(found, np.load(folder / "out" / "logits.npz")["made"], plain)


def test_an_adapter_of_pefts_on_a_llama_stands_on_the_arctic_that_is_made_of_it(folder: Path) -> None:
    source = open_llama(folder / "llama")
    models = []
    for _ in range(2):
        with torch.device("meta"):
            model = ArcticModel(source.config)
        load_weights(model, Grown(source, source.config, 0))
        models.append(model)
    plain = logits_of(models[0])
    found = logits_of(models[1], folder / "out" / "llama")
    assert_same(found, np.load(folder / "out" / "logits.npz")["llama"], plain)
