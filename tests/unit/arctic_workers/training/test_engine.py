import pytest
import torch

from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes
from arctic_workers.training.engine import LossModule, Ranks, build_model, named_tensors

CONFIG = ArcticConfig.preset("arctic-tiny").replace(vocab_size=64, num_hidden_layers=2, num_local_experts=2)


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_tensors_have_their_published_shapes_however_many_experts_a_rank_holds(expert_parallel: int) -> None:
    ranks = Ranks(0, 2, 0, torch.device("cpu"))
    tensors = named_tensors(LossModule(build_model(CONFIG, ranks, expert_parallel, 0, None)))
    shapes = tensor_shapes(CONFIG)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {name: shapes[name] for name in tensors}
    held = {name.split(".experts.")[1][0] for name in tensors if ".experts." in name}
    assert held == set("01"[: 2 // expert_parallel])
