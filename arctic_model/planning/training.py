"""What training takes: memory of each rank by part, the least time of a step, and what a budget of tokens costs.

Weights are counted from a checkpoint's shapes. ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 5) shares out
what belongs to a parameter over the ranks that hold the same one: all data-parallel ranks for what is dense, those with
the same experts for experts. A step is bound from below by a roofline (Williams et al. 2009): arithmetic at the
device's rate, the experts' exchange where it takes longer than what it hides behind, gradients and weights over the
network, the optimizer's reading and writing. Kernel starts, imbalance and everything unfused come on top.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from arctic_model.config import ArcticConfig
from arctic_model.cost import (
    count_parameters,
    fp8_flops_per_token,
    layer_multiplications,
    masked_flops_per_token,
    recomputed_flops_per_token,
    tokens_of_a_piece,
    training_flops_per_token,
)
from arctic_model.parallel import TrainingPlan as Degrees
from arctic_model.parallel import plan_training as plan_degrees
from arctic_model.planning.devices import BYTES, Device, Format, Lines

MOMENTS = 2
"""Of AdamW, in fp32 as the master weights are."""
BUCKET_ELEMENTS = 50_000_000
"""Elements that one collective reduces or gathers: DeepSpeed's default of 500M takes 2 GB a rank in fp32."""
HEADROOM = 0.1
"""Share of a device's memory that activations leave alone where they are all kept: no allocator gets at every byte."""
PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "buffers", "runtime")
WEEK, HOUR = 7 * 24 * 3600, 3600


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum."""

    name: str
    tokens: int
    tokens_per_step: int
    sequence_length: int

    @property
    def steps(self) -> int:
        """Whole steps that spend the budget."""
        return -(-self.tokens // self.tokens_per_step)


@dataclass(frozen=True)
class Training:
    """What a manifest asks of a world."""

    config: ArcticConfig
    stages: tuple[Stage, ...]
    nodes: int = 1
    processes_per_node: int = 1
    expert_parallel: int = 1
    sequence_parallel: int = 1
    zero_stage: int = 2
    micro_batch_size: int = 1
    compute: Format = "bf16"
    """Format of weights, gradients and activations; masters and moments are fp32."""
    frozen: bool = False
    """Whether only an adapter is trained, whose own state is left out: it is a thousandth of the rest."""
    fp8: bool = False
    """Whether experts and big dense matrices are multiplied in FP8. Memory is planned as without: less is kept of what
    they multiply, and one layer's matrices are there in FP8 besides while it works."""

    @property
    def world(self) -> int:
        """Ranks."""
        return self.nodes * self.processes_per_node

    def degrees(self, stage: Stage) -> Degrees:
        """Check the degrees for a stage. Raises ValueError with a sentence where they don't fit."""
        return plan_degrees(
            self.config,
            nodes=self.nodes,
            processes_per_node=self.processes_per_node,
            expert_parallel=self.expert_parallel,
            sequence_parallel=self.sequence_parallel,
            tokens_per_step=stage.tokens_per_step,
            micro_batch_size=self.micro_batch_size,
            sequence_length=stage.sequence_length,
        )

    def flops_per_token(self, stage: Stage) -> int:
        """FLOPs that are asked for a token (see `training_flops_per_token`)."""
        return training_flops_per_token(self.config, stage.sequence_length, frozen=self.frozen)

    def micro_batch_tokens(self, stage: Stage) -> int:
        """Tokens that one rank computes at once."""
        return self.micro_batch_size * stage.sequence_length // self.sequence_parallel


@dataclass(frozen=True)
class StepTime:
    """The least seconds of a step, by what they go to; all are bounds, none was measured."""

    compute: float
    exchange: float
    """Of tokens with their experts, hidden or not."""
    exposed: float
    """What of it is left where each layer's exchange runs beside that layer's arithmetic."""
    sequence: float
    """Of heads between the ranks that share sequences: nothing hides it."""
    reduction: float
    """Gradients to the ranks that keep them, and new weights back."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.exposed + self.sequence + self.reduction + self.optimizer

    @property
    def blocking(self) -> float:
        """Seconds if nothing were hidden."""
        return self.compute + self.exchange + self.sequence + self.reduction + self.optimizer


@dataclass(frozen=True)
class TrainingPlan:
    """What becomes of a `Training` on some device; each rank has one."""

    training: Training
    device: Device
    memory: Counter[str]
    """Bytes of each rank, by `PARTS`; greatest over the stages."""
    steps: tuple[StepTime | None, ...]
    """By stage; None where the device's rates aren't known."""
    recomputed: tuple[bool, ...]
    """By stage, whether activations are computed again in the backward pass: where there is no room to keep them."""

    @property
    def left(self) -> int:
        """Bytes of a rank that nothing needs; fewer than none where it doesn't fit."""
        return self.device.memory - self.memory.total()

    @property
    def fits(self) -> bool:
        """Whether a rank has room for all of it."""
        return self.left >= 0

    @property
    def flops(self) -> int:
        """FLOPs that the model asks for, over all stages (see `Training.flops_per_token`)."""
        training = self.training
        return sum(stage.steps * stage.tokens_per_step * training.flops_per_token(stage) for stage in training.stages)

    @property
    def seconds(self) -> float | None:
        """The least seconds of the whole curriculum; None where a rate isn't known."""
        if any(step is None for step in self.steps):
            return None
        pairs = zip(self.training.stages, self.steps, strict=True)
        return sum(stage.steps * step.total for stage, step in pairs if step is not None)

    @property
    def mfu(self) -> float | None:
        """The greatest model FLOPs utilization that the bounds allow, of what the device does in `compute`.

        Above 1 where long sequences leave pairs out, or products are in FP8.
        """
        seconds, peak = self.seconds, self.device.flops(self.training.compute)
        return None if not seconds or peak is None else self.flops / seconds / peak / self.training.world

    def spending(self, mfu: float) -> Spending | None:
        """Return what the curriculum takes at a utilization; None where the device's FLOPs aren't known."""
        peak = self.device.flops(self.training.compute)
        return None if peak is None else Spending(self.flops, self.training.world, mfu * peak)


@dataclass(frozen=True)
class Spending:
    """Time and devices that a number of FLOPs takes at an attained rate of each device."""

    flops: float
    devices: int
    rate: float
    """FLOPs a second of one device that are the model's own."""

    @property
    def seconds(self) -> float:
        """Of all devices together, as they run at once."""
        return self.flops / self.rate / self.devices

    @property
    def device_hours(self) -> float:
        """Hours, each device's counted."""
        return self.seconds * self.devices / HOUR

    @property
    def device_weeks(self) -> float:
        """Weeks, each device's counted."""
        return self.seconds * self.devices / WEEK

    def cost(self, price_per_hour: float) -> float:
        """US dollars at a price of a device hour."""
        return self.device_hours * price_per_hour


def needed_mfu(flops: float, device_weeks: float, peak: float) -> float:
    """Return the utilization at which so many FLOPs take so many weeks of one device."""
    return flops / (device_weeks * WEEK) / peak


def shared_by(device: Device, ranks: int) -> Device:
    """Return what each of several ranks has of a machine that they share."""

    def part(amount: float | None) -> float | None:
        return None if amount is None else amount / ranks

    return replace(
        device,
        memory=device.memory // ranks,
        bandwidth=part(device.bandwidth),
        bf16_flops=part(device.bf16_flops),
        fp8_flops=part(device.fp8_flops),
        fp32_flops=part(device.fp32_flops),
        fabric=part(device.fabric),
        network=part(device.network),
    )


def plan_training(training: Training, device: Device) -> TrainingPlan:
    """Lay a world out, `device` being what each rank has.

    Raises ValueError where its degrees can't be, or the device has no units for its precision.
    """
    if training.fp8 and training.compute == "bf16" and device.fp8_flops is None:
        raise ValueError(f"precision is fp8, and {device.title} has no units for it: write bf16")
    degrees = [training.degrees(stage) for stage in training.stages]
    resident = _resident(training)
    runtime = device.runtime + device.trainer
    room = (1 - HEADROOM) * device.memory - runtime - resident.total()
    recomputed = tuple(_working(training, stage, recomputed=False).total() > room for stage in training.stages)
    stages = list(zip(training.stages, degrees, recomputed, strict=True))
    working = [_working(training, stage, recomputed=again) for stage, _, again in stages]
    memory = resident | max(working, key=Counter.total)
    memory["runtime"] = runtime
    steps = tuple(_step_time(training, stage, each, device, recomputed=again) for stage, each, again in stages)
    return TrainingPlan(training, device, memory, steps, recomputed)


@dataclass(frozen=True)
class _Held:
    """Parameters on a rank, and ranks that hold the same."""

    parameters: float
    copies: int

    @property
    def partition(self) -> float:
        """Parameters whose optimizer state is on this rank."""
        return self.parameters / self.copies


def _held(training: Training) -> list[_Held]:
    count = count_parameters(training.config)
    experts = _Held(count.experts / training.expert_parallel, training.world // training.expert_parallel)
    dense = _Held(count.dense + count.routers, training.world)
    return [dense, experts] if count.experts else [dense]


def _resident(training: Training) -> Counter[str]:
    """What is there all the time."""
    held, width = _held(training), BYTES[training.compute]
    parameters = sum(each.parameters for each in held)
    partition = sum(each.partition for each in held)
    if training.frozen:
        return Counter({"weights": round(parameters * width), "gradients": 0, "optimizer": 0, "buffers": 0})
    kept = {0: parameters, 1: parameters, 2: partition}[training.zero_stage]
    states = parameters if training.zero_stage == 0 else partition
    # Without partitions weights in fp32 are their own masters.
    whole = training.zero_stage == 0 or training.world == 1
    masters = not whole or training.compute != "fp32"
    bucket = min(BUCKET_ELEMENTS, max(each.parameters for each in held))
    buffers = bucket * ((width if training.world > 1 else 0) if whole else 2 * width)
    return Counter(
        {
            "weights": round(parameters * width),
            "gradients": round(kept * width),
            "optimizer": round(states * (MOMENTS + masters) * BYTES["fp32"]),
            "buffers": round(buffers),
        }
    )


def _working(training: Training, stage: Stage, *, recomputed: bool) -> Counter[str]:
    """What a micro-batch keeps for its backward pass; experts are taken to be chosen evenly."""
    tokens, config = training.micro_batch_tokens(stage), training.config
    kept = [saved_by_layer(config, layer) for layer in range(config.num_hidden_layers)]
    elements = sum(kept)
    if recomputed:  # one layer's are there while its backward pass goes on, and gradients beside them
        elements = 2 * max(kept) + sum(inputs_of_layer(config, layer) for layer in range(config.num_hidden_layers))
        if training.sequence_parallel > 1:
            elements += config.num_hidden_layers * _exchanged_by_layer(config)
    return Counter(
        {
            "activations": tokens * elements * BYTES[training.compute],
            "loss": _loss(training, tokens),
        }
    )


def _loss(training: Training, tokens: int) -> int:
    """Of a piece of the tokens the logits, their log-softmax and gradient; and the output matrix's gradient in fp32."""
    config, width = training.config, BYTES[training.compute]
    piece = tokens_of_a_piece(tokens, config.vocab_size, "cpu" if training.compute == "fp32" else "cuda")
    gradient = 0 if training.frozen else config.hidden_size * BYTES["fp32"]
    return config.vocab_size * (piece * (2 * width + BYTES["fp32"]) + gradient)


def saved_by_layer(config: ArcticConfig, layer: int) -> int:
    """Elements a token that a layer keeps for the backward pass, as autograd does: the inputs of what multiplies.

    Each norm keeps what it normalised and what it returned, attention its queries, keys, values and output, a gated MLP
    both halves, the activated one and their product, experts those and their input and output for each choice.
    """
    hidden, inner, chosen = config.hidden_size, config.intermediate_size, config.num_experts_per_tok
    grouped = config.num_key_value_heads * config.head_dim
    attention = 2 * hidden + 2 * grouped
    if not config.has_experts(layer):
        return 2 * hidden + 2 * 2 * hidden + attention + 4 * inner
    experts = chosen * (2 * hidden + 4 * inner) + 2 * config.num_local_experts
    return 2 * hidden + 3 * 2 * hidden + attention + 4 * hidden + experts


def inputs_of_layer(config: ArcticConfig, layer: int) -> int:
    """Elements a token that a layer keeps where the rest is computed again: what goes into its parts.

    That is the inputs of attention and MLP, and of experts what routing chose by, what arrived and what came back.
    """
    hidden, chosen = config.hidden_size, config.num_experts_per_tok
    if not config.has_experts(layer):
        return 2 * hidden
    return 2 * hidden + 2 * hidden + chosen * 2 * hidden + 2 * config.num_local_experts


def _exchanged_by_layer(config: ArcticConfig) -> int:
    """Elements a token of queries, keys, values and outputs: what ranks that share sequences exchange in a layer."""
    return 2 * config.hidden_size + 2 * config.num_key_value_heads * config.head_dim


def _step_time(
    training: Training, stage: Stage, degrees: Degrees, device: Device, *, recomputed: bool
) -> StepTime | None:
    rate = device.flops(training.compute)
    if rate is None or device.bandwidth is None:
        return None
    config = training.config
    tokens = training.micro_batch_tokens(stage) * degrees.gradient_accumulation
    again = recomputed_flops_per_token(config, stage.sequence_length) if recomputed else 0
    masked = masked_flops_per_token(config, stage.sequence_length)
    products = fp8_flops_per_token(config, recomputed=recomputed)
    compute = tokens * _seconds(training, device, training.flops_per_token(stage) - masked + again, products)
    lines = Lines(device, training.processes_per_node)
    exchange = _exchange_seconds(training, tokens, lines)
    layers = config.expert_layers
    hybrid = config.moe_layer_frequency - 1
    window = 0.0
    if layers:  # what a layer's exchange can hide behind: its own arithmetic, forward and backward
        passes = 4 if training.frozen else 6
        attention = 6 * config.hidden_size * stage.sequence_length
        products = passes * layer_multiplications(config, hybrid)
        window = tokens * _seconds(training, device, products + attention, products)
    return StepTime(
        compute=compute,
        exchange=layers * exchange,
        exposed=layers * max(0.0, exchange - window),
        sequence=_sequence_seconds(training, tokens, lines),
        reduction=_reduction_seconds(training, degrees.gradient_accumulation, lines),
        optimizer=_optimizer_bytes(training) / device.bandwidth,
    )


def _seconds(training: Training, device: Device, flops: float, products: float) -> float:
    """Return how long so many FLOPs take at least, of which `products` may be in FP8."""
    rate, fast = device.flops(training.compute), device.fp8_flops
    assert rate is not None, "who asks knows the device's rate"
    if not training.fp8 or fast is None:  # a CPU rounds to FP8, and multiplies in fp32
        return flops / rate
    return (flops - products) / rate + products / fast


def _exchange_seconds(training: Training, tokens: int, lines: Lines) -> float:
    """Of one layer in one step: rows to their experts and back, in the forward pass and again in the backward pass."""
    ranks, config = training.expert_parallel, training.config
    rows = tokens * config.num_experts_per_tok * (ranks - 1) / ranks
    return 4 * lines.seconds(rows * config.hidden_size * BYTES[training.compute], ranks)


def _sequence_seconds(training: Training, tokens: int, lines: Lines) -> float:
    """Of all layers in one step: the forward pass and its reverse, each rank keeping its own part."""
    ranks, config = training.sequence_parallel, training.config
    elements = tokens * _exchanged_by_layer(config) * config.num_hidden_layers * (ranks - 1) / ranks
    return 2 * lines.seconds(elements * BYTES[training.compute], ranks)


def _reduction_seconds(training: Training, micro_batches: int, lines: Lines) -> float:
    """Gradients to their keepers, new weights once a step to all: (n - 1) / n of each, a rank.

    Where gradients are not shared out, in the stages below 2, they go once a step, else once a micro-batch. Stage 0 has
    no keepers: an all-reduce, which moves as much as both.
    """
    width = BYTES[training.compute]
    seconds = 0.0
    for held in _held(training) if not training.frozen else []:
        share = held.parameters * width * (held.copies - 1) / held.copies
        times = micro_batches + 1 if training.zero_stage == 2 else 2
        seconds += times * lines.seconds(share, held.copies)
    return seconds


def _optimizer_bytes(training: Training) -> float:
    """Read: gradient, master, moments; written: master, moments, weights."""
    if training.frozen:
        return 0.0
    states = sum(held.partition if training.zero_stage else held.parameters for held in _held(training))
    return states * (2 * (1 + MOMENTS) * BYTES["fp32"] + 2 * BYTES[training.compute])
