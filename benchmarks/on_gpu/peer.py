"""Training as one writes it by hand in plain torch: grouped GEMMs for experts, `torch.compile`, fused AdamW.

The same model, numbers and state as ours: bf16 weights and gradients, masters and moments in fp32, clipping.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from arctic_api.training import Optimizer
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.moe import Experts, MoE

Loss = Callable[[Tensor], Tensor]


class GroupedExperts(Experts):
    """Experts of which one call multiplies the rows of all."""

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """See `Experts`; nothing waits for the counts."""
        ends_E = counts_E.cumsum(0).to(torch.int32)
        gate_RF, up_RF = (torch._grouped_mm(x_RD, w_EFD.transpose(1, 2), offs=ends_E) for w_EFD in (self.w1, self.w3))
        return torch._grouped_mm(functional.silu(gate_RF) * up_RF, self.w2.transpose(1, 2), offs=ends_E)


def grouped_moe(config: ArcticConfig, layer: int) -> MoE:  # noqa: ARG001
    """Make the experts of a layer, as `ArcticModel` asks for them."""
    moe = MoE(config)
    moe.experts = GroupedExperts(config.num_local_experts, config.hidden_size, config.intermediate_size)
    return moe


def compiled(loss: Loss) -> Loss:
    """Compile a whole forward pass, and so its backward pass: nothing of it is left to Python."""
    return torch.compile(loss, fullgraph=True, dynamic=False)


class Peer:
    """A model, its optimizer, and one batch that it is trained on."""

    def __init__(
        self,
        config: ArcticConfig,
        tokens_BT: Tensor,
        adam: Optimizer,
        rate: float,
        compile_: Callable[[Loss], Loss] = compiled,
    ) -> None:
        """`tokens_BT` has one token more a row than is trained on."""
        with torch.device("meta"):
            self.model = ArcticModel(config, moe=grouped_moe).to(torch.bfloat16)
        init_weights(self.model, 0, device=tokens_BT.device)
        self._tokens_BT = tokens_BT
        self._clipping = adam.gradient_clipping
        self._weights: list[Tensor] = list(self.model.parameters())
        self._masters = [weight.detach().float() for weight in self._weights]
        self._gradients = [torch.empty_like(master) for master in self._masters]
        for master, gradient in zip(self._masters, self._gradients, strict=True):
            master.grad = gradient
        groups = [
            {"params": [p for p in self._masters if p.dim() > 1], "weight_decay": adam.weight_decay},
            {"params": [p for p in self._masters if p.dim() == 1], "weight_decay": 0.0},
        ]
        betas = (adam.beta1, adam.beta2)
        self._optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=adam.epsilon, fused=True)
        self._loss = compile_(self._loss_of)

    def _loss_of(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV, balance = self.model.forward_with_loss(tokens_BT[:, :-1])
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten()) + balance

    def step(self) -> Tensor:
        """Make one step; returns its loss, for which nothing has waited."""
        loss = self._loss(self._tokens_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        self._update()
        return loss.detach()

    @torch.no_grad()
    def _update(self) -> None:
        """Clip the gradients, update the masters by them, and round these to the weights."""
        torch.nn.utils.clip_grad_norm_(self._weights, self._clipping, foreach=True)
        torch._foreach_copy_(self._gradients, [weight.grad for weight in self._weights if weight.grad is not None])
        self._optimizer.step()
        torch._foreach_copy_(self._weights, self._masters)
        for weight in self._weights:
            weight.grad = None
