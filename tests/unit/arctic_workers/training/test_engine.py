from collections.abc import Callable
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.utils.config import get_timers_config
from deepspeed.utils.timer import ThroughputTimer

from arctic_api.training import ArcticTrainingSpec
from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes
from arctic_workers.training.engine import LossModule, Ranks, _configuration, build_model, named_tensors

CONFIG = ArcticConfig.preset("arctic-tiny").replace(vocab_size=64, num_hidden_layers=2, num_local_experts=2)


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_tensors_have_their_published_shapes_however_many_experts_a_rank_holds(expert_parallel: int) -> None:
    ranks = Ranks(0, 2, 0, torch.device("cpu"))
    tensors = named_tensors(LossModule(build_model(CONFIG, ranks, expert_parallel, 0, None)))
    shapes = tensor_shapes(CONFIG)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {name: shapes[name] for name in tensors}
    held = {name.split(".experts.")[1][0] for name in tensors if ".experts." in name}
    assert held == set("01"[: 2 // expert_parallel])


@pytest.mark.parametrize("stage", [0, 2])
def test_deepspeed_waits_for_no_device_to_time_steps(
    stage: int,
    spec_of: Callable[[list[dict[str, Any]], int], ArcticTrainingSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[object] = []
    monkeypatch.setattr(deepspeed.get_accelerator(), "synchronize", lambda: waits.append(None))
    configuration = _configuration(spec_of([{"tokens": 1024}], 512), torch.bfloat16, stage)
    timer = ThroughputTimer(get_timers_config(configuration), batch_size=1)
    for _ in range(4):  # the first ones are not timed
        timer.start()
        timer.stop(global_step=True)
    assert waits == []
