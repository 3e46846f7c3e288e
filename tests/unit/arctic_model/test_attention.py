from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_model import attention
from arctic_model.attention import CausalAttend, DocumentAttend, attention_mask, flash_takes, grouped_attention


def naive(q_BTNH, k_BTGH, v_BTGH, window, sinks):
    """One query, one head, one key at a time, as the definition says."""
    out = torch.empty_like(q_BTNH)
    batch, length, heads, size = q_BTNH.shape
    share = heads // k_BTGH.shape[2]
    for b in range(batch):
        for n in range(heads):
            for t in range(length):
                seen = [j for j in range(t + 1) if window is None or t - j < window or j < sinks]
                keys = k_BTGH[b, seen, n // share]
                weights = torch.softmax(keys @ q_BTNH[b, t, n] / math.sqrt(size), 0)
                out[b, t, n] = weights @ v_BTGH[b, seen, n // share]
    return out


def random_qkv(length=9, heads=6, grouped=2, size=4):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, length, heads, size), (2, length, grouped, size), (2, length, grouped, size))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize(("window", "sinks"), [(None, 0), (3, 0), (3, 2), (1, 1), (100, 4)])
@pytest.mark.parametrize("grouped", [1, 2, 6])
def test_attention_equals_the_definition(window, sinks, grouped):
    q, k, v = random_qkv(grouped=grouped)
    torch.testing.assert_close(CausalAttend(window, sinks)(0, q, k, v), naive(q, k, v, window, sinks))


def test_cached_keys_give_what_one_pass_gives():
    q, k, v = random_qkv()
    whole = CausalAttend(4, 1)(0, q, k, v)
    visible = attention_mask(torch.arange(6, 9), torch.arange(9), 4, 1)
    torch.testing.assert_close(grouped_attention(q[:, 6:], k, v, visible), whole[:, 6:])


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 8))
def test_every_query_sees_itself_its_window_and_the_sinks(length, window, sinks):
    positions = torch.arange(length)
    visible = attention_mask(positions, positions, window, sinks)
    assert not visible.triu(1).any()
    expected = [min(t + 1, window) + min(sinks, max(t + 1 - window, 0)) for t in range(length)]
    assert visible.sum(1).tolist() == expected


def flash_by_masks(q_SNH, k_SGH, v_SGH, begins, longest, window=None):
    """What the kernel is defined to compute, of whose arguments none may be wrong."""
    assert begins.dtype == torch.int32
    assert int(begins[0]) == 0
    assert int(begins[-1]) == len(q_SNH)
    assert longest == int(begins.diff().max())
    documents_S = torch.bucketize(torch.arange(len(q_SNH)), begins[1:], right=True)
    positions_S = torch.arange(len(q_SNH))
    visible_SS = attention_mask(positions_S, positions_S, window) & (documents_S[:, None] == documents_S[None, :])
    return grouped_attention(q_SNH[None], k_SGH[None], v_SGH[None], visible_SS)[0]


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("starts", [[[0], [0, 4, 5]], [[0, 8], [0, 2]], [[0], [0]]])
def test_the_flash_kernel_is_told_where_documents_begin(starts, window, monkeypatch):
    tensors = random_qkv()
    expected = DocumentAttend(starts, 9, window)(0, *tensors)
    calls = []

    def flash(*arguments):
        calls.append(arguments)
        return flash_by_masks(*arguments)

    monkeypatch.setattr(attention, "flash_takes", lambda _: True)
    monkeypatch.setattr(attention, "flash_attention", flash)
    attend = DocumentAttend(starts, 9, window)
    for layer in range(2):
        torch.testing.assert_close(attend(layer, *tensors), expected)
    # Whole sequences without a window need no boundaries: torch has faster kernels for them.
    assert len(calls) == (0 if starts == [[0], [0]] and window != 3 else 2)


def test_sinks_are_left_to_masks(monkeypatch):
    monkeypatch.setattr(attention, "flash_takes", lambda _: True)
    monkeypatch.setattr(attention, "flash_attention", None)
    tensors = random_qkv()
    torch.testing.assert_close(
        DocumentAttend([[0], [0]], 9, 3, 2)(0, *tensors), CausalAttend(3, 2)(0, *tensors), rtol=0, atol=0
    )


class Called(TorchDispatchMode):
    """Keeps what the flash kernel is called with."""

    def __init__(self):
        super().__init__()
        self.flash = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._flash_attention_forward.default:
            self.flash.append((args, kwargs))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [None, 3])
def test_documents_on_a_gpu_take_one_kernel_with_gradients_of_grouped_heads(window):
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = (
            torch.empty(2, 9, heads, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (6, 2, 2)
        )
        with Called() as called:
            out = DocumentAttend([[0, 4], [0]], 9, window)(0, q, k, v)
        [(told, options)] = called.flash
        assert [told[index].shape[0] for index in (0, 3)] == [18, 4]
        assert told[5:9] == (9, 9, 0.0, True)
        assert options.get("window_size_left") == (None if window is None else window - 1)
        assert options.get("window_size_right") == (None if window is None else 0)
        assert (out.shape, out.device) == (q.shape, q.device)
        node, names = out.grad_fn, []
        while node is not None:
            names.append(node.name())
            node = node.next_functions[0][0] if node.next_functions else None
        assert "FlashAttentionBackward0" in " ".join(names)


@pytest.mark.parametrize(
    ("device", "dtype", "size", "takes"),
    [
        ("cuda", torch.bfloat16, 8, True),
        ("cpu", torch.bfloat16, 8, False),
        ("cuda", torch.float32, 8, False),
        ("cuda", torch.bfloat16, 12, False),
    ],
)
def test_the_flash_kernel_takes_sixteen_bits_on_a_gpu(device, dtype, size, takes):
    with FakeTensorMode():
        assert flash_takes(torch.empty(1, 2, 2, size, device=device, dtype=dtype)) == takes
