"""One rank of a training and the same model in plain torch, in turn in one process: what `benchmarks.training` asks.

As a program it has the environment of a rank, reads lines of what to do, and writes a number for each.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import WORLD_VARIABLE, TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.planning.training_time import RankStep
from arctic_workers.training.data.windows import MicroBatch
from arctic_workers.training.engine import (
    Ranks,
    build_model,
    gradient_norm,
    gradients_of,
    mean_over_ranks,
    set_learning_rate,
    start_engine,
    start_processes,
)
from benchmarks.predicting.cases import TRAINING_CASES

RATE = 1e-4
MATMUL = 2048
"""Rows and columns of the matrices whose product says what the machine can do."""


CASES = {
    "tiny": RankStep(ArcticConfig.preset("arctic-tiny"), 4, 8, 128),
    "100m": RankStep(ArcticConfig.preset("arctic-small"), 2, 4, 256),
}
"""The step of `examples/tiny-training.yaml`, and one of the preset that has 97M parameters."""


class Ours:
    """A step as the trainer makes it."""

    def __init__(self, case: RankStep, spec: ArcticTrainingSpec, ranks: Ranks) -> None:
        self._ranks = ranks
        self.engine = start_engine(build_model(case.config, ranks, 1, 0, None, precision=spec.precision), spec)
        set_learning_rate(self.engine, RATE)
        self._batches = [
            MicroBatch(batch[:, :-1], batch[:, 1:], [[0]] * case.sequences, case.sequences * case.length)
            for batch in _batches(case)
        ]
        self._targets = case.tokens

    def step(self) -> None:
        """Make one step, with what the trainer exchanges after it."""
        loss = gradients_of(self.engine, self._batches, self._targets, self._ranks)
        self.engine.step()
        mean_over_ranks([loss, 0.0, 0.0, 0.0, 0.0], self._ranks.device)
        gradient_norm(self.engine)

    def backward(self) -> None:
        """Leave the gradients of one micro-batch."""
        batch = self._batches[0]
        loss, balance = self.engine(torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels), batch.starts)
        self.engine.backward(loss + balance)


class Plain:
    """The same without an engine: one model on one device, torch's own loss, fused AdamW with clipping."""

    def __init__(self, case: RankStep, spec: ArcticTrainingSpec) -> None:
        self._model = ArcticModel(case.config)
        init_weights(self._model, 0)
        self._batches = [torch.from_numpy(batch) for batch in _batches(case)]
        adam = spec.optimizer
        self._clipping = adam.gradient_clipping
        matrices = [p for p in self._model.parameters() if p.dim() > 1]
        norms = [p for p in self._model.parameters() if p.dim() == 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": adam.weight_decay}, {"params": norms, "weight_decay": 0.0}],
            lr=RATE,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
            fused=True,
        )

    def step(self) -> None:
        """Make one step."""
        total = torch.zeros((), dtype=torch.float64)
        for batch in self._batches:
            logits_BTV, balance = self._model.forward_with_loss(batch[:, :-1])
            loss = functional.cross_entropy(logits_BTV.flatten(0, 1), batch[:, 1:].flatten())
            torch.autograd.backward((loss + balance) / len(self._batches))
            total += loss.detach().double() / len(self._batches)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clipping)
        self._optimizer.step()
        self._optimizer.zero_grad()
        float(total)


def _batches(case: RankStep) -> Sequence[npt.NDArray[np.int64]]:
    random = np.random.default_rng(0)
    shape = (case.sequences, case.length + 1)
    return [random.integers(case.config.vocab_size, size=shape) for _ in range(case.micro_batches)]


def _alive() -> int:
    """Return the bytes of all tensors that are alive, each memory counted once."""
    held = {}
    for thing in gc.get_objects():
        if isinstance(thing, Tensor):
            # A gradient that nobody has looked at is no object of Python's yet.
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(held.values())


class Sides:
    """Both sides of each case, made when they are asked for, and what else is measured in the same process."""

    def __init__(self, world: TrainingWorld) -> None:
        self._spec = world.spec
        self._ranks = start_processes()
        self._made: dict[str, Ours | Plain] = {}
        self._matrix = torch.randn(MATMUL, MATMUL)

    def answer(self, asked: str) -> float:
        """Return a number for a line: `matmul`, `ours CASE` and `plain CASE` take seconds, `bytes CASE` are counted."""
        kind, _, name = asked.partition(" ")
        if kind == "matmul":
            return _seconds(lambda: self._matrix @ self._matrix)
        if kind == "bytes":
            return self._bytes_per_parameter(CASES[name])
        if asked not in self._made:
            case = (CASES | TRAINING_CASES)[name]
            self._made[asked] = self._ours(case) if kind == "ours" else Plain(case, self._spec)
            self._made[asked].step()  # the first makes what the others find
        return _seconds(self._made[asked].step)

    def _ours(self, case: RankStep) -> Ours:
        return Ours(case, self._spec, self._ranks)

    def _bytes_per_parameter(self, case: RankStep) -> float:
        """Return what weights, gradients and the optimizer's state take, all there after a backward pass."""
        before = _alive()
        ours = self._ours(case)
        ours.backward()
        return (_alive() - before) / count_parameters(case.config).total


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Answer each line on standard input."""
    sides = Sides(TrainingWorld.model_validate_json(os.environ[WORLD_VARIABLE]))
    for line in sys.stdin:
        print(sides.answer(line.strip()), flush=True)


if __name__ == "__main__":
    main()
