"""AdamW for trainings whose state ZeRO does not partition: clips and looks for what is not finite, as ZeRO would."""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from torch import Tensor

from arctic_model import devices
from arctic_model.devices import Wait


class UnpartitionedAdamW(torch.optim.AdamW):
    """Fused AdamW over whole parameters in fp32, their gradients already the means over all ranks.

    Clips by the norm of all gradients while it updates, so that no gradient is read once more for it; leaves an update
    out whose gradient is not finite. DeepSpeed reads `overflow` and `_global_grad_norm`, as of its own optimizers.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], epsilon: float, clipping: float
    ) -> None:
        super().__init__(groups, 0.0, betas, epsilon, fused=True)
        self.overflow = False
        """Whether the last update was left out."""
        self.holds = False
        """Whether updates are left out, whatever their gradients."""
        self.expert_group: Any = None
        """The ranks that share out the experts; None where each has all."""
        self._clipping = clipping
        self._global_grad_norm = 0.0
        for parameter in self._parameters():
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one update, or leave it out. Collective where ranks share out experts."""
        assert closure is None, "DeepSpeed gives none"
        norm = math.inf if self.holds else self._norm()
        self.overflow = not math.isfinite(norm)
        self._global_grad_norm = math.inf if self.overflow else norm
        if not self.overflow:
            scale = max(1.0, (norm + 1e-6) / self._clipping) if self._clipping else 1.0
            self.grad_scale = torch.tensor(scale, dtype=torch.float32)  # the update divides gradients by it
            super().step()
        return None

    def _norm(self) -> float:
        parameters = self._parameters()
        dense = _squares([parameter for parameter in parameters if not is_moe_param(parameter)])
        experts = _squares([parameter for parameter in parameters if is_moe_param(parameter)])
        if self.expert_group is not None:
            experts = experts.to(parameters[0].device)
            dist.all_reduce(experts, group=self.expert_group)
        return math.sqrt(devices.on_host((dense + experts).view(1), Wait.STEP)[0])

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return int(self.state[self._parameters()[0]]["step"])

    @steps.setter
    def steps(self, steps: int) -> None:
        for parameter in self._parameters():
            self.state[parameter]["step"].fill_(steps)


def _squares(parameters: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all gradients, fp64."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum()
