"""Keeping torch's compiler out of a rank: nothing of a training is compiled, and importing it is most of a start."""

import importlib
import inspect

import torch
from torch.optim import Adam, AdamW, Optimizer


def import_without_compiling(module: str) -> None:
    """Import a module whose functions are compiled as it is imported, without that."""
    compiled = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda given: given)  # type: ignore[assignment]
    try:
        importlib.import_module(module)
    finally:
        torch.compile = compiled


class EagerAdamW(AdamW):
    """Torch's AdamW without what wraps its methods: that imports the compiler, to tell it to leave them alone."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(Adam.step))
