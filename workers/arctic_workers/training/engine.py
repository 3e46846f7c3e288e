"""The DeepSpeed engine of a run: processes, model with shared-out experts, optimizer. DeepSpeed is set up here."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from arctic_model.devices import shows_gpus

# Read when DeepSpeed is imported.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if shows_gpus() else "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import deepspeed
import deepspeed.comm as dist
import torch
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from arctic_api.training import ArcticTrainingSpec, Lora, Precision
from arctic_model import devices
from arctic_model.attention import Attend, DocumentAttend, document_positions
from arctic_model.config import ArcticConfig
from arctic_model.devices import Wait
from arctic_model.initialization import init_weights
from arctic_model.lora import adapter_shapes, add_adapter
from arctic_model.loss import loss_sum
from arctic_model.model import ArcticModel
from arctic_model.moe import Router, Text
from arctic_model.names import hf_names, tensor_shapes
from arctic_model.planning.training import BUCKET_ELEMENTS
from arctic_model.weights import Weights, load_weights
from arctic_workers.training.checkpoint.zero import prepare_optimizer
from arctic_workers.training.compiler import EagerAdamW, compile_regions, import_without_compiling
from arctic_workers.training.data.windows import IGNORED, MicroBatch
from arctic_workers.training.errors import Fenced, Refused, StoreFull
from arctic_workers.training.experts import GRADIENTS, Company, Flights, ParallelExperts, TrainedExperts
from arctic_workers.training.fp8.model import multiply_in_fp8
from arctic_workers.training.optimizer import UnpartitionedAdamW
from arctic_workers.training.sequence import HeadAttend, SequenceShare, share_sequences

ZERO_SUPPORTED_OPTIMIZERS.append(EagerAdamW)  # torch's own is: DeepSpeed's would be compiled in the pod

T = TypeVar("T")

PREPARATION_TIMEOUT = timedelta(hours=24)
"""Longest wait for rank 0 while it trains the tokenizer and writes the token streams."""
STEP_TIMEOUT = timedelta(minutes=5)
"""Longest wait for a peer in a step: for one that vanishes. One that dies is noticed at once, by its connection."""


@dataclass(frozen=True)
class Ranks:
    """Where this process is in the world."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    sequence_parallel: int = 1
    """Consecutive ranks that share each sequence."""

    @property
    def leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def reader(self) -> int:
        """Which of the `readers` this rank is one of: ranks that share sequences read the same."""
        return self.rank // self.sequence_parallel

    @property
    def readers(self) -> int:
        """How many groups of ranks read different sequences."""
        return self.world // self.sequence_parallel


def start_processes() -> Ranks:
    """Join the other ranks: NCCL on GPUs, gloo on CPUs."""
    # The shared-memory all-reduce is for inference, and would need a C++ compiler in the pod.
    # DeepSpeed is told that nothing can be built: else it asks compilers about each operator that it has.
    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    accelerator = deepspeed.get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    os.environ["LOCAL_SIZE"] = os.environ["LOCAL_WORLD_SIZE"]  # DeepSpeed's name for it
    accelerator.set_device(local_rank)
    deepspeed.init_distributed(accelerator.communication_backend_name(), timeout=PREPARATION_TIMEOUT, verbose=False)
    device = torch.device("cuda", local_rank) if accelerator.device_name() == "cuda" else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)


def launched_collectives() -> dict[str, int]:
    """Return how many collectives this rank has launched, by group of ranks that it is in; from any thread."""
    groups = list(distributed_c10d._world.pg_names.items())
    return {name: group._get_sequence_number_for_group() for group, name in groups}  # type: ignore[attr-defined]


def wait_for_peers_at_most(timeout: timedelta) -> None:
    """Set how long any collective waits before it fails."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timeout, group)


@contextmanager
def patience() -> Iterator[None]:
    """Let collectives wait for a rank that writes for all, or for the slowest writer, as long as for a preparation."""
    wait_for_peers_at_most(PREPARATION_TIMEOUT)
    yield
    wait_for_peers_at_most(STEP_TIMEOUT)


def training_dtype(device: torch.device) -> torch.dtype:
    """Return what the model computes in: bf16 on GPUs; fp32 on CPUs, few of which multiply bf16 natively."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class LossModule(nn.Module):
    """The model with its loss, as DeepSpeed wants it: one module, called once a micro-batch."""

    def __init__(self, arctic: ArcticModel, share: SequenceShare | None = None, flights: Flights | None = None) -> None:
        super().__init__()
        self.arctic = arctic
        self._share = share
        self._routers = [part for part in arctic.modules() if isinstance(part, Router)]
        self.flights = Flights() if flights is None else flights
        """When its exchanges start and arrive."""
        self.rows_B2: Tensor | None = None
        """Of the last forward pass with gradients: each sequence's summed loss, and how many labels that is."""

    def forward(
        self,
        tokens_BT: Tensor,
        labels_BT: Tensor | None = None,
        starts: Sequence[Sequence[int]] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy over the labels that count, and the auxiliary loss.

        Of ranks that share sequences each is given them whole, and returns its part of that mean.

        Args:
            tokens_BT: token ids.
            labels_BT: what each of them is to predict, `IGNORED` where nothing; by default the next one, and the last
                of a row is a label alone.
            starts: where documents begin, by row; by default each row is one. None sees another.
            sizes: tokens before padding, by row; by default there is none.
        """
        if labels_BT is None:
            tokens_BT, labels_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        loss, balance = self._loss_sum(tokens_BT, labels_BT, starts, sizes)
        return loss / (labels_BT != IGNORED).sum().clamp(min=1), balance

    def loss_and_targets(self, batch: MicroBatch) -> Tensor:
        """Return the summed cross-entropy of a batch and how many labels that is: [2]."""
        device = next(self.parameters()).device
        labels_BT = torch.from_numpy(batch.labels).to(device)
        loss, _ = self._loss_sum(torch.from_numpy(batch.tokens).to(device), labels_BT, batch.starts, batch.sizes)
        return torch.stack([loss, (self._part(labels_BT) != IGNORED).sum().to(loss)])

    def _part(self, x_BT: Tensor) -> Tensor:
        return x_BT if self._share is None else self._share.part(x_BT)

    def _text(self, sizes: Sequence[int] | None, length: int, device: torch.device) -> Text | None:
        """Return which of this rank's tokens are of a text."""
        if sizes is None:
            return None
        mask_BT = torch.arange(length) < torch.tensor(sizes)[:, None]
        ranks = 1 if self._share is None else self._share.ranks
        return Text(devices.on_device(self._part(mask_BT).flatten(), device), sum(sizes) / ranks)

    def _loss_sum(
        self,
        tokens_BT: Tensor,
        labels_BT: Tensor,
        starts: Sequence[Sequence[int]] | None,
        sizes: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy over the labels that count, and the auxiliary loss."""
        text = self._text(sizes, tokens_BT.shape[1], tokens_BT.device)
        for router in self._routers:
            router.text = text
        length = tokens_BT.shape[1]
        starts = [[0]] * tokens_BT.shape[0] if starts is None else starts
        positions_BT = devices.on_device(document_positions(starts, length), tokens_BT.device)
        attend: Attend = DocumentAttend(starts, length, self.arctic.config.sliding_window)
        if self._share is not None:
            attend = HeadAttend(attend, self._share)
        tokens_BT, labels_BT, positions_BT = (self._part(x_BT) for x_BT in (tokens_BT, labels_BT, positions_BT))
        x_BTD, balance = self.arctic.normed_with_loss(tokens_BT, positions_BT, attend)
        assert self.arctic.lm_head is not None, "what is trained is a whole model"
        labels_S = labels_BT.flatten()
        weights_S = (labels_S != IGNORED).float()
        losses_S = torch.zeros_like(weights_S)
        loss = loss_sum(x_BTD.flatten(0, 1), self.arctic.lm_head.weight, labels_S.clamp(min=0), weights_S, losses_S)
        if torch.is_grad_enabled():
            self.rows_B2 = torch.stack([of_S.view_as(labels_BT).sum(1) for of_S in (losses_S, weights_S)], 1)
        return loss, balance


def shape_model(
    config: ArcticConfig,
    ranks: Ranks,
    expert_parallel: int,
    lora: Lora | None = None,
    precision: Precision = "bf16",
) -> ArcticModel:
    """Return the model with this rank's experts, on the meta device: it takes no memory."""
    ep_rank = ranks.rank % expert_parallel
    experts = TrainedExperts if lora is None else ParallelExperts
    company = Company()

    def moe(config: ArcticConfig, layer: int) -> ParallelExperts:
        return experts(config, expert_parallel, ep_rank, layer, company)

    with torch.device("meta"):
        model = ArcticModel(config, moe=moe).to(training_dtype(ranks.device))
    if precision == "fp8":
        multiply_in_fp8(model)
    return model


def fill_model(
    model: ArcticModel,
    ranks: Ranks,
    expert_parallel: int,
    seed: int,
    weights: Weights | None,
    lora: Lora | None = None,
) -> None:
    """Give a shaped model its memory: `weights`, or fresh ones from the seed; frozen under an adapter.

    Weights depend on no parallel degree. Raises `CheckpointError` for weights that are not this model's.
    """
    first_expert = ranks.rank % expert_parallel * (model.config.num_local_experts // expert_parallel)
    if weights is None:
        init_weights(model, seed, device=ranks.device, first_expert=first_expert)
    else:
        load_weights(model, weights, device=ranks.device, first_expert=first_expert)
    for layer in model.modules():
        if isinstance(layer, ParallelExperts):
            layer.mark_parameters()
    if lora is not None:
        add_adapter(model, lora.rank, lora.alpha, seed)


def build_model(
    config: ArcticConfig,
    ranks: Ranks,
    expert_parallel: int,
    seed: int,
    weights: Weights | None,
    lora: Lora | None = None,
    precision: Precision = "bf16",
) -> ArcticModel:
    """Return the model that `shape_model` shapes and `fill_model` fills."""
    model = shape_model(config, ranks, expert_parallel, lora, precision)
    fill_model(model, ranks, expert_parallel, seed, weights, lora)
    return model


def trained_shapes(config: ArcticConfig, lora: Lora | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that is trained: an adapter's, or all."""
    return tensor_shapes(config) if lora is None else adapter_shapes(config, lora.rank)


def tensor_names(module: nn.Module) -> dict[str, list[str]]:
    """Return the Hugging Face names that each parameter holds, stacked experts in order."""
    names: dict[str, list[str]] = {}
    experts = {name: layer.held for name, layer in module.named_modules() if isinstance(layer, ParallelExperts)}
    for name, _ in module.named_parameters():
        held = next((held for prefix, held in experts.items() if name.startswith(f"{prefix}.")), range(0))
        names[name] = hf_names(name.removeprefix("arctic."), held)
    return names


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return views of this rank's parameters under their Hugging Face names, each expert its own."""
    names = tensor_names(module)
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        # Not by the number of names: a rank that holds one expert has it stacked too.
        parts = parameter.data.unbind() if parameter.dim() == 3 else [parameter.data]
        tensors |= dict(zip(names[name], parts, strict=True))
    return tensors


def start_engine(model: ArcticModel, spec: ArcticTrainingSpec) -> Any:
    """Hand the model to DeepSpeed: ZeRO, clipping, AdamW; returns the engine, its optimizer state linked and zero.

    At `zeroStage: 0` DeepSpeed only reduces gradients, and each rank has all of the optimizer's state. On a GPU the
    regions of the model and of the optimizer are compiled from now on.
    """
    # DeepSpeed asks whether the optimizer is of a kind that nobody uses here, and would import torch's compiler for it.
    import_without_compiling("deepspeed.runtime.zero.muon.original_muon")
    company = next((layer.company for layer in model.modules() if isinstance(layer, ParallelExperts)), Company())
    company.sequences = share_sequences(dist.get_rank(), spec.parallelism.sequence_parallel, company.flights)
    module = LossModule(model, company.sequences, company.flights)
    first = next(module.parameters())
    dtype = first.dtype
    if first.device.type == "cuda":
        compile_regions()
    adam = spec.optimizer
    groups = _parameter_groups(module, adam.weight_decay)
    if partitions(spec):
        optimizer = EagerAdamW(groups, 0.0, (adam.beta1, adam.beta2), adam.epsilon, fused=True)
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=_configuration(spec, dtype, spec.parallelism.zero_stage)
        )
        prepare_optimizer(engine)
        return engine
    whole = UnpartitionedAdamW(groups, (adam.beta1, adam.beta2), adam.epsilon, adam.gradient_clipping)
    engine, *_ = deepspeed.initialize(model=module, optimizer=whole, config=_configuration(spec, dtype, 0))
    engine.enable_backward_allreduce = False  # of up to 500M elements at once: the optimizer asks for smaller ones
    if dist.get_world_size() > 1:
        reduce = partial(engine.buffered_allreduce_fallback, elements_per_buffer=BUCKET_ELEMENTS)
        whole.reduce = module.flights.blocking(GRADIENTS)(reduce)
        shared = (layer.ep_group for layer in model.modules() if isinstance(layer, TrainedExperts))
        whole.expert_group = next(shared, None)
    return engine


def partitions(spec: ArcticTrainingSpec) -> bool:
    """Whether ZeRO partitions the state of the optimizer.

    One rank has nobody to share with: what ZeRO does there is copying (measured by `benchmarks.training`). The numbers
    are the same.
    """
    return spec.parallelism.zero_stage > 0 and dist.get_world_size() > 1


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: norms without decay, and experts apart."""
    trained = [p for p in module.parameters() if p.requires_grad]
    norms = [p for p in trained if p.dim() == 1]
    others = [p for p in trained if p.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": others, "weight_decay": weight_decay},
        {"name": "norms", "params": norms, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # an adapter has no norms
    return list(split_params_into_different_moe_groups_for_optimizer(groups))


def _configuration(spec: ArcticTrainingSpec, dtype: torch.dtype, stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": spec.batch.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step ends where the trainer says so: stages differ in micro-batches
        "gradient_clipping": spec.optimizer.gradient_clipping if stage else 0.0,  # `UnpartitionedAdamW` clips itself
        # Without partitions it would wrap the optimizer, which has masters of its own.
        "bf16": {"enabled": stage > 0 and dtype == torch.bfloat16},
        "communication_data_type": "bf16" if dtype == torch.bfloat16 else "fp32",
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "steps_per_print": 2**62,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device around each step
    }


def leave_update_out(engine: Any) -> None:
    """End a step without its update: as DeepSpeed does where a gradient is not finite, here whatever it is."""
    zero = engine.optimizer
    if isinstance(zero, UnpartitionedAdamW):
        zero.holds = True
        engine.step()
        zero.holds = False
        return
    check, checks = zero.check_overflow, zero.check_grad_overflow

    def declare(**_: Any) -> None:
        zero.overflow = True

    zero.check_overflow, zero.check_grad_overflow = declare, True
    try:
        engine.step()
    finally:
        zero.check_overflow, zero.check_grad_overflow = check, checks


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the rate of every group for the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gradients_of(
    engine: Any,
    batches: Sequence[MicroBatch],
    targets: int,
    ranks: Ranks,
    forward: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float:
    """Compute the gradients of a rank's micro-batches of a step of so many `targets`; returns the rank's mean loss.

    Each forward pass, and not what of it the backward pass computes again, is within a `forward()`.
    """
    total = torch.zeros(1, dtype=torch.float64, device=ranks.device)
    for batch in batches:
        tokens, labels = (
            devices.on_device(torch.from_numpy(part), ranks.device) for part in (batch.tokens, batch.labels)
        )
        with forward():
            loss, balance = engine(tokens, labels, batch.starts, batch.sizes)
        share = batch.targets * ranks.world / targets  # each label of the step counts alike
        with engine.module.flights.blocking(GRADIENTS):
            engine.backward(loss * share + balance / len(batches))
        total += loss.detach().double() * share
    return devices.on_host(total, Wait.STEP)[0]


def mean_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Return the means over all ranks: the same bits on each of them."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return devices.on_host(tensor / torch.distributed.get_world_size(), Wait.STEP)


def from_leader(ranks: Ranks, call: Callable[[], T]) -> T:
    """Return on all ranks what `call` returns on rank 0, or raise what it raises there of our errors. Collective."""
    answer: list[object] = [None]
    if ranks.leader:
        try:
            answer = [call()]
        except (Refused, Fenced, StoreFull) as error:
            answer = [error]
    torch.distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]  # type: ignore[return-value]


def gradient_norm(engine: Any) -> float:
    """Return the norm of the last step's gradient before it was clipped, over all ranks."""
    norm = engine.get_global_grad_norm()
    return devices.on_host(norm.view(1), Wait.STEP)[0] if isinstance(norm, Tensor) else norm or 0.0
