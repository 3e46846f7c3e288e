"""A small Arctic that has every kind of layer."""

from __future__ import annotations

import pytest
import torch

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """What is drawn follows from no test that came before in this process."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def config() -> ArcticConfig:
    return ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=20,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_hidden_layers=4,
        num_local_experts=4,
        moe_layer_frequency=2,
        initializer_range=0.2,
    )


@pytest.fixture
def model(config: ArcticConfig) -> ArcticModel:
    model = ArcticModel(config)
    init_weights(model, seed=3)
    return model


@pytest.fixture(scope="session")
def tokens(config: ArcticConfig) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(1))
