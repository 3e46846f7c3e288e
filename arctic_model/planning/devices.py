"""The devices that plans are made for: what their vendor says of them, and what they leave to a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB, GIB = 2**20, 2**30
Format = Literal["fp8", "bf16", "fp32"]
BYTES: dict[Format, int] = {"fp8": 1, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Device:
    """One device, and how many of it a node has. FLOPs are dense: vendors print twice as many, with sparsity."""

    title: str
    memory: int
    """Bytes that a program can take, all in all."""
    runtime: int
    """Bytes of those that are gone before the first tensor."""
    bandwidth: float | None
    """Bytes a second that its memory can be read at; None where nobody knows."""
    bf16_flops: float | None
    """FLOPs a second; None where nobody knows."""
    fp8_flops: float | None
    """FLOPs a second; None where it has no units for FP8, or nobody knows."""
    per_node: int
    """Devices of a node, which is as far as tensor parallelism reaches."""
    fp32_flops: float | None = None
    """FLOPs a second of matrices in fp32, in which CPUs train; None where nobody knows, or nothing trains in it."""
    fabric: float | None = None
    """Bytes a second that a device sends to others of its node, and receives as many; None where nobody knows."""
    network: float | None = None
    """Bytes a second that a device sends to other nodes, and receives as many; None where nobody knows."""
    trainer: int = 0
    """Bytes beside `runtime` that a training's rank takes before its first tensor."""

    def flops(self, format_: Format) -> float | None:
        """FLOPs a second of matrices in a format; None where it has no units for it, or nobody knows."""
        return {"fp32": self.fp32_flops, "bf16": self.bf16_flops, "fp8": self.fp8_flops}[format_]


@dataclass(frozen=True)
class Lines:
    """How long bytes take between ranks: those of a node over its fabric, all others over the network, both at once."""

    device: Device
    per_node: int

    def seconds(self, sent: float, ranks: int) -> float:
        """Return how long a rank takes that sends `sent` bytes to the other ranks of its group, evenly.

        Rates that nobody knows are left out.
        """
        near = min(ranks, self.per_node) - 1
        far = ranks - 1 - near
        times = [
            sent * share / (ranks - 1) / rate
            for share, rate in ((near, self.device.fabric), (far, self.device.network))
            if share and rate
        ]
        return max(times, default=0.0)


# CUDA's context, kernels and workspaces of libraries, NCCL's buffers, captured graphs: an allowance, no measurement.
_CUDA_RUNTIME = 3 * GIB

# Memory is what CUDA reports as total, the least that was seen in PyTorch's out-of-memory messages: "80 GB" of a
# datasheet are neither 80 GiB nor 80e9 bytes.
DEVICES: dict[str, Device] = {
    "a100": Device(
        title="A100 80GB SXM",
        memory=int(79.1 * GIB),
        runtime=_CUDA_RUNTIME,
        # NVIDIA A100 datasheet (80GB SXM): 2,039 GB/s; BFLOAT16 Tensor Core 312 TFLOPS; no FP8. HGX A100: 8 GPUs.
        bandwidth=2.039e12,
        bf16_flops=312e12,
        fp8_flops=None,
        per_node=8,
        # NVIDIA DGX A100 datasheet: NVLink 600 GB/s in both directions; 8 compute ports of 200 Gb/s.
        fabric=300e9,
        network=25e9,
    ),
    "h100": Device(
        title="H100 80GB SXM",
        memory=int(79.1 * GIB),
        runtime=_CUDA_RUNTIME,
        # NVIDIA H100 datasheet (SXM): 3.35 TB/s; with sparsity BFLOAT16 1,979 and FP8 3,958 TFLOPS. HGX H100: 8 GPUs.
        bandwidth=3.35e12,
        bf16_flops=989.5e12,
        fp8_flops=1979e12,
        per_node=8,
        # NVIDIA DGX H100 datasheet: NVLink 900 GB/s in both directions; 8 compute ports of 400 Gb/s.
        fabric=450e9,
        network=50e9,
    ),
    "h200": Device(
        title="H200 141GB SXM",
        memory=int(139.7 * GIB),
        runtime=_CUDA_RUNTIME,
        # NVIDIA H200 datasheet (SXM): 4.8 TB/s; with sparsity BFLOAT16 1,979 and FP8 3,958 TFLOPS. HGX H200: 8 GPUs.
        bandwidth=4.8e12,
        bf16_flops=989.5e12,
        fp8_flops=1979e12,
        per_node=8,
        # NVIDIA DGX H200 datasheet: as the H100's.
        fabric=450e9,
        network=50e9,
    ),
    "b200": Device(
        title="B200 180GB SXM",
        memory=int(178.3 * GIB),
        runtime=_CUDA_RUNTIME,
        # NVIDIA HGX B200 datasheet, 8 GPUs: 1.44 TB and up to 8 TB/s a GPU; with sparsity BF16 36 and FP8 72 PFLOPS.
        bandwidth=8e12,
        bf16_flops=2250e12,
        fp8_flops=4500e12,
        per_node=8,
        # NVIDIA DGX B200 datasheet: NVLink 1.8 TB/s in both directions; 8 compute ports of 400 Gb/s.
        fabric=900e9,
        network=50e9,
    ),
}


def device_named(name: str) -> Device | None:
    """Return the device that CUDA calls so, as in "NVIDIA H100 80GB HBM3"; None for one that the table lacks.

    A card for a PCIe slot, or two of them joined (NVL), is another device than the one on a board of eight (SXM).
    """
    words = name.replace("-", " ").split()
    if any(word in ("PCIe", "NVL") for word in words):
        return None
    return next((device for device in DEVICES.values() if device.title.split()[0] in words), None)


def cpu(*, memory: int, bandwidth: float | None, fp32_flops: float | None = None) -> Device:
    """A machine without GPUs as one device: its memory that is free, how fast all cores read it and multiply."""
    # Python with torch imported takes 522 MB (measured on Linux).
    return Device(
        title="CPU of this machine",
        memory=memory,
        runtime=GIB // 2,
        bandwidth=bandwidth,
        bf16_flops=None,
        fp8_flops=None,
        per_node=1,
        fp32_flops=fp32_flops,
        # A rank that has trained a model of nothing takes 715 MB (measured likewise): DeepSpeed, groups of processes.
        trainer=200 * MIB,
    )
