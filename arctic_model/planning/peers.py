"""Models that Arctic is compared with: what a token costs in each. Pure; shapes are of published configs."""

from __future__ import annotations

from dataclasses import dataclass

from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters


@dataclass(frozen=True)
class Peer:
    """Parameters of a model, and those that one token passes through."""

    title: str
    total: int
    active: int

    def reads(self, other: Peer) -> float:
        """Weights that a token of batch 1 reads, as a share of another's: all active ones once, in the same format."""
        return self.active / other.active

    def computes(self, other: Peer) -> float:
        """FLOPs of a token as a share of another's: two an active parameter forward, four backward."""
        return self.active / other.active


@dataclass(frozen=True)
class _Shape:
    """A decoder with gated MLPs and grouped key-value heads."""

    hidden: int
    inner: int
    layers: int
    grouped: int
    """Key-value heads times their size."""
    vocabulary: int
    experts: int = 1
    chosen: int = 1

    def parameters(self, experts: int) -> int:
        """With so many experts a layer counted."""
        attention = 2 * self.hidden * (self.hidden + self.grouped)
        router = self.hidden * self.experts if self.experts > 1 else 0
        layer = attention + 3 * experts * self.hidden * self.inner + router + 2 * self.hidden
        return self.layers * layer + 2 * self.vocabulary * self.hidden + self.hidden

    def peer(self, title: str) -> Peer:
        return Peer(title, self.parameters(self.experts), self.parameters(self.chosen))


def arctic(config: ArcticConfig, title: str = "Arctic") -> Peer:
    """An Arctic as a peer."""
    count = count_parameters(config)
    return Peer(title, count.total, count.active)


PEERS: dict[str, Peer] = {
    "llama-3-70b": _Shape(8192, 28672, 80, 1024, 128256).peer("Llama 3 70B"),
    "code-llama-70b": _Shape(8192, 28672, 80, 1024, 32016).peer("Code Llama 70B"),
    "mixtral-8x22b": _Shape(6144, 16384, 56, 1024, 32000, experts=8, chosen=2).peer("Mixtral 8x22B"),
    "dbrx": _Shape(6144, 10752, 40, 1024, 100352, experts=16, chosen=4).peer("DBRX"),
}
"""From config.json of Meta-Llama-3-70B, CodeLlama-70b-hf, Mixtral-8x22B-v0.1 and dbrx-base on Hugging Face."""
