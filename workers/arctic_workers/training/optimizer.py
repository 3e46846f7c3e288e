"""AdamW for trainings whose state ZeRO does not partition: reduces, clips and looks for what is not finite itself."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from torch import Tensor

from arctic_model import devices
from arctic_model.devices import Wait
from arctic_model.planning.training import BUCKET_ELEMENTS
from arctic_workers.training.compiler import EagerAdamW


class UnpartitionedAdamW(EagerAdamW):
    """Fused AdamW over whole parameters, with masters in fp32 of those that are not fp32 themselves.

    Clips by the norm of all gradients while it updates, so that no gradient is read once more for it; leaves an update
    out whose gradient is not finite. DeepSpeed reads `overflow` and `_global_grad_norm`, as of its own optimizers.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], epsilon: float, clipping: float
    ) -> None:
        groups = list(groups)
        masters: dict[Tensor, Tensor] = {p: _master(p) for group in groups for p in group["params"]}
        of_masters = [{**group, "params": [masters[p] for p in group["params"]]} for group in groups]
        super().__init__(of_masters, 0.0, betas, epsilon, fused=True)
        self.masters = masters
        """Of each parameter what is updated: itself, or its copy in fp32."""
        self.overflow = False
        """Whether the last update was left out."""
        self.holds = False
        """Whether updates are left out, whatever their gradients."""
        self.reduce: Callable[[], None] | None = None
        """Turns gradients into their means over all ranks; None where they are that already. Collective."""
        self.expert_group: Any = None
        """The ranks that share out the experts; None where each has all."""
        self._clipping = clipping
        self._global_grad_norm = 0.0
        for master in masters.values():
            self.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one update, or leave it out. Collective where there are other ranks."""
        assert closure is None, "DeepSpeed gives none"
        if self.reduce is not None and not self.holds:
            self.reduce()
        norm = math.inf if self.holds else self._norm()
        self.overflow = not math.isfinite(norm)
        self._global_grad_norm = math.inf if self.overflow else norm
        if not self.overflow:
            scale = max(1.0, (norm + 1e-6) / self._clipping) if self._clipping else 1.0
            self.grad_scale = torch.tensor(scale, dtype=torch.float32)  # the update divides gradients by it
            for apart in self._pieces():
                for parameter, master in apart:
                    master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
                super().step()
                for parameter, master in apart:
                    parameter.copy_(master)
                    master.grad = None
        return None

    def _pieces(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield parameters and masters that are updated at once: bounds the memory that gradients in fp32 take.

        The first are those that are their own masters, whose gradients are there as they are.
        """
        piece = [(parameter, master) for parameter, master in self.masters.items() if master is parameter]
        elements = 0
        for parameter, master in self.masters.items():
            if master is parameter:
                continue
            if piece and elements + parameter.numel() > BUCKET_ELEMENTS:
                yield piece
                piece, elements = [], 0
            piece.append((parameter, master))
            elements += parameter.numel()
        yield piece

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the parameters to what their masters hold."""
        for parameter, master in self.masters.items():
            parameter.copy_(master)

    def _norm(self) -> float:
        parameters = list(self.masters)
        dense = _squares([parameter for parameter in parameters if not is_moe_param(parameter)])
        experts = _squares([parameter for parameter in parameters if is_moe_param(parameter)])
        if self.expert_group is not None:
            experts = experts.to(parameters[0].device)
            dist.all_reduce(experts, group=self.expert_group)
        return math.sqrt(devices.on_host((dense + experts).view(1), Wait.STEP)[0])

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return int(next(iter(self.state.values()))["step"])

    @steps.setter
    def steps(self, steps: int) -> None:
        for state in self.state.values():
            state["step"].fill_(steps)


def _master(parameter: Tensor) -> Tensor:
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float()


def _squares(parameters: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all gradients, fp64."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).double().square().sum()
