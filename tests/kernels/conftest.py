"""Triton's kernels under its interpreter, on the CPU: the variable has to be set before Triton is imported."""

import os
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("run these by `make kernels`, or with TRITON_INTERPRET=1")


@pytest.fixture(autouse=True)
def dots_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter multiplies the integers that bits of bf16 are."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    create_dot = InterpreterBuilder.create_dot

    def repaired(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (builder.create_fp_ext(operand, tl.float32) for operand in (a, b))
        return create_dot(builder, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", repaired)
