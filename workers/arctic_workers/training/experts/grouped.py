"""Products of many experts at once, as GPUs do them: the kernel reads on the device where an expert's rows end.

So the host need not know how many rows an expert has, and starts one kernel where a loop starts one an expert. Shapes
are named by the legend of `arctic_model.layers`; P are the rows, sorted by expert, M and N any features of them.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

_ALIGNED = 16
"""Bytes that a row of each operand is a multiple of: the kernel's loads."""


class GroupedProduct(Protocol):
    """How rows that are sorted by expert are multiplied. What is returned has the dtype of what is given.

    `ends_E` are the rows after which each expert's end: int32, on the device, the last one P, as nothing else is ever
    written of what is returned. An expert may have none.
    """

    def rows(self, x_PM: Tensor, weights_EMN: Tensor, ends_E: Tensor) -> Tensor:
        """Return each row times its expert's matrix: [P, N]. Matrices are contiguous in either of their dimensions."""
        ...

    def weight_gradient(self, left_PM: Tensor, right_PN: Tensor, ends_E: Tensor) -> Tensor:
        """Return the sum over each expert's rows of the outer products of left and right: [E, M, N], contiguous.

        An expert without rows has zeros.
        """
        ...

    def takes(self, weights_EFD: Tensor) -> bool:
        """Whether experts with such matrices are multiplied in groups at all, rather than in a loop."""
        ...


class PlainProduct:
    """In the dtype that rows and matrices have: torch's own kernel.

    It is one on Hopper and newer; on older cards torch itself falls back to a loop, which waits for the device.
    """

    def rows(self, x_PM: Tensor, weights_EMN: Tensor, ends_E: Tensor) -> Tensor:
        """See `GroupedProduct`."""
        if not x_PM.shape[0]:
            return x_PM.new_empty(0, weights_EMN.shape[2])
        return torch._grouped_mm(x_PM, weights_EMN, offs=ends_E)

    def weight_gradient(self, left_PM: Tensor, right_PN: Tensor, ends_E: Tensor) -> Tensor:
        """See `GroupedProduct`."""
        if not left_PM.shape[0]:
            return left_PM.new_zeros(ends_E.shape[0], left_PM.shape[1], right_PN.shape[1])
        gradient_EMN = torch._grouped_mm(left_PM.t(), right_PN, offs=ends_E)
        if _forgets_the_empty(gradient_EMN.device):
            begins_E = torch.nn.functional.pad(ends_E, (1, 0))[:-1]
            gradient_EMN.masked_fill_((begins_E == ends_E)[:, None, None], 0)
        return gradient_EMN

    def takes(self, weights_EFD: Tensor) -> bool:
        """See `GroupedProduct`: in bf16 on a GPU."""
        aligned = all(size * weights_EFD.element_size() % _ALIGNED == 0 for size in weights_EFD.shape[1:])
        return weights_EFD.device.type == "cuda" and weights_EFD.dtype == torch.bfloat16 and aligned


@cache
def _forgets_the_empty(device: torch.device) -> bool:
    """Whether the kernel leaves out the matrices of experts without rows: on Blackwell (pytorch issue 172439)."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device)[0] >= 10


@dataclass(frozen=True)
class Groups:
    """Which of some rows are of which expert, known to the device alone."""

    ends_E: Tensor
    """As of `GroupedProduct`; int32 [E]."""
    experts: slice
    """Which experts of the rank they are."""
    product: GroupedProduct

    def rows(self, x_PM: Tensor, weights_EMN: Tensor) -> Tensor:
        """Return each row times its expert's matrix, of those of all experts of the rank: [P, N]."""
        return self.product.rows(x_PM, weights_EMN[self.experts], self.ends_E)

    def weight_gradient(self, left_PM: Tensor, right_PN: Tensor) -> Tensor:
        """Return the gradients of these experts' matrices."""
        return self.product.weight_gradient(left_PM, right_PN, self.ends_E)


def ends_of(counts_E: Tensor) -> Tensor:
    """Return where rows end of which each expert has so many."""
    return counts_E.cumsum(0, dtype=torch.int32)
