"""Layers that know nothing of attention or experts: normalisation, MLP, rotary positions.

Names of tensors end in their shape, in all modules of this package. The legend:

B sequences   T tokens of a sequence   S tokens of all sequences, flat   R rows that experts receive (S times K)
D hidden_size   F intermediate_size   V vocab_size   N query heads   G key-value heads   H head_dim   E experts
K experts of a token
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.config import ArcticConfig, RopeScaling
from arctic_model.devices import Wait, counts_on_host
from arctic_model.regions import region


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, in fp32 whatever the input (Zhang, Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return a tensor of the same shape and dtype."""
        return _normed(x_BTD, self.weight, self.eps)


@region
def _normed(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    wide = x_BTD.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight_D * (wide * scale).to(x_BTD.dtype)


class MLP(nn.Module):
    """Gated MLP: `w2(silu(w1 x) * w3 x)`."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)
        self.w3 = nn.Linear(hidden, inner, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        out: Tensor = self.w2(gated(self.w1(x_BTD), self.w3(x_BTD)))
        return out


@region
def gated(gate_SF: Tensor, up_SF: Tensor) -> Tensor:
    """Return what w2 of a gated MLP takes, of what w1 and w3 gave; all of one shape."""
    return functional.silu(gate_SF) * up_SF


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which every position turns queries and keys; fp32."""

    cos_BTH: Tensor
    sin_BTH: Tensor


class RotaryPositions:
    """Rotary position embedding (Su et al. 2021) in the rotate-half form, stretched as the configuration says.

    Not a module: it has nothing to load, and a model that is built on the meta device must not lose it.
    """

    def __init__(self, config: ArcticConfig) -> None:
        self._config = config
        self.frequencies_H2 = rotary_frequencies(config, length=config.max_position_embeddings)
        self._on_device: dict[torch.device, Tensor] = {}
        scaling = config.rope
        self._dynamic = scaling is not None and scaling.type == "dynamic"
        self.magnitude = _yarn_magnitude(scaling) if scaling is not None and scaling.type == "yarn" else 1.0

    def __call__(self, positions_BT: Tensor) -> Rotation:
        """Return the rotation of each position.

        Under `dynamic` scaling the angles depend on the greatest position of the call, as in Hugging Face.
        """
        frequencies_H2 = self.frequencies_H2
        if self._dynamic and positions_BT.numel():
            frequencies_H2 = rotary_frequencies(self._config, length=_greatest(positions_BT) + 1)
        elif positions_BT.device.type != "cpu":  # sent once: while a host sends, it waits for what the device has to do
            frequencies_H2 = self._on(positions_BT.device)
        return rotation_of(positions_BT, frequencies_H2, self.magnitude)

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = self.frequencies_H2.to(device, torch.float64)
        return self._on_device[device]


def _greatest(positions_BT: Tensor) -> int:
    return counts_on_host(positions_BT.max().view(1), Wait.POSITIONS)[0]


def rotation_of(positions_BT: Tensor, frequencies_H2: Tensor, magnitude: float = 1.0) -> Rotation:
    """Return the rotation of whole positions by frequencies in radians a position.

    Angles are fp64: a position of a million times a frequency, rounded to fp32, would be off by degrees.
    """
    angles_BTH2 = positions_BT[..., None].double() * frequencies_H2.to(positions_BT.device, torch.float64)
    angles_BTH = torch.cat((angles_BTH2, angles_BTH2), dim=-1)
    return Rotation((angles_BTH.cos() * magnitude).float(), (angles_BTH.sin() * magnitude).float())


def rotate(x_BTNH: Tensor, rotation: Rotation) -> Tensor:
    """Turn the heads of every token by its position; same shape and dtype."""
    first, second = x_BTNH.float().chunk(2, dim=-1)
    turned_BTNH = torch.cat((-second, first), dim=-1)
    cos_BT1H, sin_BT1H = rotation.cos_BTH.unsqueeze(-2), rotation.sin_BTH.unsqueeze(-2)
    return (x_BTNH.float() * cos_BT1H + turned_BTNH * sin_BT1H).to(x_BTNH.dtype)


@region
def rotate_both(q_BTNH: Tensor, k_BTGH: Tensor, cos_BTH: Tensor, sin_BTH: Tensor) -> tuple[Tensor, Tensor]:
    """Turn queries and keys by the same rotation."""
    rotation = Rotation(cos_BTH, sin_BTH)
    return rotate(q_BTNH, rotation), rotate(k_BTGH, rotation)


def rotary_frequencies(config: ArcticConfig, length: int) -> Tensor:
    """Radians a position for each pair of elements: fp32 [head_dim / 2], on the CPU.

    `length` matters under `dynamic` scaling only: tokens of the longest sequence.
    """
    scaling, size = config.rope, config.head_dim
    base = config.rope_theta
    if scaling is not None and scaling.type == "dynamic":
        stretch = max(length / config.max_position_embeddings, 1.0)
        base *= (scaling.factor * stretch - (scaling.factor - 1)) ** (size / (size - 2)) if size > 2 else 1.0
    # An explicit device: this is not part of the model's memory, so it exists under torch.device("meta") too.
    exponents_H2 = torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size
    frequencies_H2 = 1.0 / base**exponents_H2
    if scaling is None or scaling.type == "dynamic":
        return frequencies_H2
    if scaling.type == "linear":
        return frequencies_H2 / scaling.factor
    return frequencies_H2 * (1 - _yarn_share(config, scaling) * (1 - 1 / scaling.factor))


def _yarn_share(config: ArcticConfig, scaling: RopeScaling) -> Tensor:
    """How far each frequency is interpolated, 0 to 1: a ramp between two numbers of rotations (YaRN, section 3.2)."""
    size = config.head_dim
    original = scaling.original_max_position_embeddings or config.max_position_embeddings

    def dimension(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    steps_H2 = torch.arange(size // 2, dtype=torch.float32, device="cpu")
    return ((steps_H2 - low) / max(high - low, 0.001)).clamp(0, 1)


def _yarn_magnitude(scaling: RopeScaling) -> float:
    """YaRN's temperature (its section 3.4), put on queries and keys alike by the rotation."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _temperature(scaling.factor, scaling.mscale) / _temperature(scaling.factor, scaling.mscale_all_dim)
    return _temperature(scaling.factor)


def _temperature(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0
