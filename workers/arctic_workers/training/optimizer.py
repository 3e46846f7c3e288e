"""AdamW for trainings whose state ZeRO does not partition: reduces, clips and looks for what is not finite itself."""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from torch import Tensor

from arctic_model import devices
from arctic_model.devices import Wait
from arctic_model.regions import region
from arctic_workers.training.compiler import EagerAdamW

_ROW = 16
"""Elements of a row of what is updated: the widest loads of a GPU take 4 to 8, which a compiler must know to divide."""


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
        self._parameters = {master: parameter for parameter, master in masters.items() if master is not parameter}
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
            self._update_masters(scale)
            super().step()  # of those that are their own masters: no others have gradients
            for master in self.masters.values():
                master.grad = None
        return None

    def _update_masters(self, scale: float) -> None:
        """Update what has a master in fp32, each parameter with all that belongs to it in one pass over memory."""
        updates: list[tuple[Tensor, dict[str, Any], Tensor]] = []
        for group in self.param_groups:
            moved = [master for master in group["params"] if self._gradient_of(master) is not None]
            if not moved:
                continue
            torch._foreach_add_([self.state[master]["step"] for master in moved], 1)
            told = _told(group, scale, self.state[moved[0]]["step"])
            updates += [(master, group, told) for master in moved]
        # The largest first: while a GPU makes these, the host starts the many that take less than their start.
        for update in sorted(updates, key=lambda update: -update[0].numel()):
            self._update_master(*update)

    def _update_master(self, master: Tensor, group: dict[str, Any], told: Tensor) -> None:
        state, parameter, gradient = self.state[master], self._parameters[master], self._gradient_of(master)
        assert gradient is not None
        mean, square = _flat(state["exp_avg"]), _flat(state["exp_avg_sq"])
        beta1, beta2 = group["betas"]
        tensors = _flat(parameter), _flat(gradient), _flat(master), mean, square, told
        _update(*tensors, beta1, beta2, group["eps"])

    def _gradient_of(self, master: Tensor) -> Tensor | None:
        """Return the gradient of the parameter whose master this is; None too for one that is its own."""
        return self._parameters[master].grad if master in self._parameters else None

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


def _flat(tensor: Tensor) -> Tensor:
    """Return the same memory as rows: a compiled update takes any number of them, and knows that they are whole loads.

    No view: of what a view is one, the compiler wants to know the shape too, and would compile for each kind of it.
    """
    return tensor.data.reshape(-1, math.gcd(tensor.numel(), _ROW)).data


def _told(group: dict[str, Any], scale: float, step: Tensor) -> Tensor:
    """Return what `_update` has to know of a step, fp32 [4] on the device: a number would be compiled anew each time.

    The step's size, what weight decay leaves, by what gradients are multiplied, and the correction of the denominator.
    """
    rate, (beta1, beta2) = group["lr"], group["betas"]
    numbers = torch.tensor([rate, 1 - rate * group["weight_decay"], 1 / scale, beta1, beta2], dtype=torch.float64)
    rate_, left, factor, *betas = devices.on_device(numbers, step.device).unbind()
    bias1, bias2 = (1 - beta**step for beta in betas)
    return torch.stack([rate_ / bias1, left, factor, bias2.rsqrt()]).float()


@region
def _update(
    parameter: Tensor,
    gradient: Tensor,
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    told: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Make AdamW's update (Loshchilov, Hutter 2019, algorithm 2) of a master, and round it into its parameter."""
    size, left, factor, correction = told.unbind()
    wide = gradient.float() * factor
    exp_avg.lerp_(wide, 1 - beta1)
    exp_avg_sq.lerp_(wide.square(), 1 - beta2)
    master.mul_(left).sub_(size * exp_avg / (exp_avg_sq.sqrt() * correction + epsilon))
    parameter.copy_(master)


def _squares(parameters: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all gradients, fp64."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).double().square().sum()
