"""The Arctic model, written for one device; parallelism is applied from outside.

A rank of a pipeline builds a slice of it: some layers, with or without the embedding and the output matrix. Names stay
those of the whole model. Build under `torch.device("meta")` to take no memory, then load or initialise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from arctic_model.attention import Attend, Attention, CausalAttend, SplitAttend
from arctic_model.config import ArcticConfig
from arctic_model.layers import MLP, RMSNorm, RotaryPositions, Rotation
from arctic_model.moe import ExpertLayer, Experts, MoE
from arctic_model.recompute import Arguments, Result, recomputed

MoEFactory = Callable[[ArcticConfig, int], ExpertLayer]
"""Makes the experts of a layer from the configuration and the layer's global index; what it returns is a module too."""


def one_device_moe(config: ArcticConfig, layer: int) -> MoE:  # noqa: ARG001
    """The `MoEFactory` of a model on one device."""
    return MoE(config)


class DenseMLP(nn.Module):
    """The MLP of a layer without experts, under the name that checkpoints give it."""

    def __init__(self, config: ArcticConfig) -> None:
        super().__init__()
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        out: Tensor = self.mlp(x_BTD)
        return out


class DecoderLayer(nn.Module):
    """One layer; attention and a dense MLP, and experts that read the layer's input from before attention."""

    def __init__(self, config: ArcticConfig, layer: int, moe: MoEFactory = one_device_moe) -> None:
        super().__init__()
        self.has_experts = config.has_experts(layer)
        self.recomputes = False
        self.self_attn = Attention(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if self.has_experts:
            self.residual_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.residual_mlp = MLP(config.hidden_size, config.hidden_size)
            self.block_sparse_moe = cast("nn.Module", moe(config, layer))
        else:
            self.block_sparse_moe = DenseMLP(config)

    def forward(self, x_BTD: Tensor, rotation: Rotation, attend: Attend) -> tuple[Tensor, Tensor | None]:
        """Return the layer's output [B, T, D] and its load-balancing loss (a scalar; None without experts)."""
        if not self.has_experts:
            h_BTD = self._with_attention(x_BTD, rotation, attend)
            return self._part(self._add_mlp, h_BTD), None
        experts = cast("ExpertLayer", self.block_sparse_moe)
        dispatched = experts.dispatch(self.post_attention_layernorm(x_BTD))
        h_BTD = self._with_attention(x_BTD, rotation, attend)
        computed = experts.compute(dispatched)
        h_BTD = self._part(self._add_residual_mlp, h_BTD)
        y_BTD, balance = experts.combine(computed)
        return h_BTD + y_BTD, balance

    def _part(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call a part of the layer; where it `recomputes`, the backward pass keeps its input, and computes the rest."""
        return recomputed(function, *arguments) if self.recomputes else function(*arguments)

    def _with_attention(self, x_BTD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        if not isinstance(attend, SplitAttend):
            return self._part(self._add_attention, x_BTD, rotation, attend)
        layer = self.self_attn.layer
        own = attend.begin(layer, *self._part(self._enter_attention, x_BTD, rotation))
        out_BTNH = attend.end(layer, self._part(attend.attend, layer, *own))
        return x_BTD + self.self_attn.leave(out_BTNH)

    def _enter_attention(self, x_BTD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.enter(self.input_layernorm(x_BTD), rotation)

    def _add_attention(self, x_BTD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        out: Tensor = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation, attend)
        return out

    def _add_mlp(self, h_BTD: Tensor) -> Tensor:
        out: Tensor = h_BTD + self.block_sparse_moe(self.post_attention_layernorm(h_BTD))
        return out

    def _add_residual_mlp(self, h_BTD: Tensor) -> Tensor:
        out: Tensor = h_BTD + self.residual_mlp(self.residual_layernorm(h_BTD))
        return out


class Trunk(nn.Module):
    """What checkpoints call `model`: embedding, layers by their global index, final norm."""

    def __init__(self, config: ArcticConfig, layers: range, embed: bool, lm_head: bool, moe: MoEFactory) -> None:
        super().__init__()
        shape = (config.vocab_size, config.hidden_size)
        # Given its weight it draws none: on a meta device that would import torch's compiler, for seconds of a start.
        self.embed_tokens = nn.Embedding(*shape, _weight=torch.empty(shape)) if embed else None
        self.layers = nn.ModuleDict({str(layer): DecoderLayer(config, layer, moe) for layer in layers})
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if lm_head else None


class ArcticModel(nn.Module):
    """An Arctic or a slice of one.

    `layers` are the global indices to build (all by default), `embed` and `lm_head` whether the slice turns tokens into
    hidden states and hidden states into logits. `moe` makes the experts of a layer.
    """

    def __init__(
        self,
        config: ArcticConfig,
        layers: range | None = None,
        *,
        embed: bool = True,
        lm_head: bool = True,
        moe: MoEFactory = one_device_moe,
    ) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers) if layers is None else layers
        if not set(layers) <= set(range(config.num_hidden_layers)):
            raise ValueError(f"layers {layers} are not all in a model of {config.num_hidden_layers} layers")
        self.config = config
        self.model = Trunk(config, layers, embed, lm_head, moe)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if lm_head else None
        self.rotary = RotaryPositions(config)

    @property
    def layers(self) -> dict[int, DecoderLayer]:
        """The layers that this slice holds, by global index."""
        return {int(index): cast("DecoderLayer", layer) for index, layer in self.model.layers.items()}

    def recompute(self, wanted: bool) -> None:
        """Choose whether backward passes compute anew what attention, MLPs and experts had, or find it kept.

        Routing, exchanged tokens and their results are kept either way: computing again adds no communication.
        """
        for part in self.modules():
            if isinstance(part, DecoderLayer | Experts):
                part.recomputes = wanted

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Turn token ids into hidden states [B, T, D]."""
        if self.model.embed_tokens is None:
            raise RuntimeError("this slice of the model has no embedding: it takes hidden states")
        x_BTD: Tensor = self.model.embed_tokens(tokens_BT)
        return x_BTD

    def run_layers(self, x_BTD: Tensor, positions_BT: Tensor, attend: Attend | None = None) -> tuple[Tensor, Tensor]:
        """Run this slice's layers. Returns [B, T, D] and the layers' load-balancing losses, summed (a scalar)."""
        attend = CausalAttend(self.config.sliding_window) if attend is None else attend
        rotation = self.rotary(positions_BT)
        total = x_BTD.new_zeros((), dtype=torch.float32)
        for layer in self.model.layers.values():
            x_BTD, balance = layer(x_BTD, rotation, attend)
            total = total if balance is None else total + balance
        return x_BTD, total

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Turn the last layer's hidden states into logits [B, T, V]."""
        lm_head, norm = self._output()
        logits_BTV: Tensor = lm_head(norm(x_BTD))
        return logits_BTV

    def normed_with_loss(
        self, tokens_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what `lm_head` takes [B, T, D] and the auxiliary loss (a scalar, `router_aux_loss_coef` applied)."""
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        x_BTD, balance = self.run_layers(self.embed(tokens_BT), positions_BT, attend)
        return self._output()[1](x_BTD), self.config.router_aux_loss_coef * balance

    def forward_with_loss(
        self, tokens_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B, T, V] and the auxiliary loss; `arctic_model.loss` never holds the logits of all tokens."""
        x_BTD, balance = self.normed_with_loss(tokens_BT, positions_BT, attend)
        return self._output()[0](x_BTD), balance

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """Return logits [B, T, V]. Positions count from 0 in every sequence unless they are given."""
        return self.forward_with_loss(tokens_BT, positions_BT, attend)[0]

    def _output(self) -> tuple[nn.Linear, RMSNorm]:
        if self.lm_head is None or self.model.norm is None:
            raise RuntimeError("this slice of the model has no output matrix: it returns hidden states")
        return self.lm_head, self.model.norm
