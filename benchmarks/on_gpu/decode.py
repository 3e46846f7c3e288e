"""Decoding with layers of a large model: how near a step comes to reading what it has to, and where its time goes."""

from dataclasses import dataclass

from benchmarks.on_gpu.layers import Loaded, choices, rows_by_expert, singles, states
from benchmarks.on_gpu.measuring import kernels_of, seconds
from benchmarks.on_gpu.sizes import touched_bytes

BATCHES = (1, 16, 64)
CONTEXT = 2048
"""Tokens that each sequence has, with the one that is computed."""


@dataclass(frozen=True)
class Decoded:
    """A step of a batch, a layer of it."""

    batch: int
    seconds: float
    touched: float
    """Experts, in the mean of the layers."""
    experts: list[int]
    """The first layer's."""
    bytes: float
    """That have to be read."""
    kernels: list[tuple[str, int, float]]
    """By name: how many there are, and their microseconds, both of all layers."""

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds

    def of_limit(self, read: float) -> float:
        """Return the least time over the one that it took, where memory is read at such a rate."""
        return self.rate / read


def decoded(loaded: Loaded, batch: int, length: int, budget: float = 3.0) -> Decoded:
    """Measure steps of so many sequences, once their graph is recorded."""
    config, layers = loaded.config, loaded.config.num_hidden_layers
    parts = singles(batch, length)
    x_TD = states(parts, config, loaded.device)
    with choices() as tables:
        loaded.run(parts, x_TD)  # computed anew, then recorded
    counts = [rows_by_expert(table_M3, config.num_local_experts) for table_M3 in tables[:layers]]
    experts = [(count_E > 0).nonzero()[:, 0].tolist() for count_E in counts]
    touched = sum(map(len, experts)) / layers

    def step() -> object:
        return loaded.run(parts, x_TD)

    taken = seconds(step, loaded.device, budget)
    by_name: dict[str, tuple[int, float]] = {}
    for name, begin, end in kernels_of(step, loaded.device):
        count, total = by_name.get(name, (0, 0.0))
        by_name[name] = count + 1, total + end - begin
    return Decoded(
        batch,
        taken / layers,
        touched,
        experts[0],
        touched_bytes(config, touched, batch, length),
        sorted(((name, *found) for name, found in by_name.items()), key=lambda row: -row[2]),
    )
