"""One rank's slice of the model: loading it, and its share of a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from arctic_model.config import ArcticConfig
from arctic_model.devices import CPU
from arctic_model.layers import rotary_frequencies
from arctic_model.model import ArcticModel
from arctic_model.parallel import WHOLE, LayerSlice, TensorSlice
from arctic_model.weights import load_weights, take_fp8_form, take_share
from arctic_workers.control.memory import available_memory, readable
from arctic_workers.inference.engines.native.adapters import AdaptedLinear, Adapter, adapt_model
from arctic_workers.inference.engines.native.cache import PagedAttend, PagedCache
from arctic_workers.inference.engines.native.invariant import make_invariant
from arctic_workers.inference.engines.native.kernel.library import library
from arctic_workers.inference.engines.native.kernel.rank import kernel_rank
from arctic_workers.inference.engines.native.sampling import Likeliest, draw_tokens, tell_tokens
from arctic_workers.inference.engines.native.step import Draw, Drawn, Known, Part

if TYPE_CHECKING:  # it imports Triton
    from arctic_workers.inference.engines.native.cuda.team import Leader, Team

log = logging.getLogger(__name__)

LOGITS_AT_ONCE = 64
"""Rows of known tokens whose logits are in memory at a time: a chunk of a prompt may have thousands."""
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class _WithoutInitialValues(TorchFunctionMode):
    """Layers come without initial values: on the meta device, giving them imports torch's compiler for seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def load_slice(
    folder: Path,
    config: ArcticConfig,
    part: LayerSlice,
    weights: str,
    progress: Callable[[float], None],
    device: torch.device = CPU,
    share: TensorSlice = WHOLE,
) -> ArcticModel:
    """Load some layers of a checkpoint with weights in `fp8`, `bf16` or `fp32`, ready to compute in fp32.

    Or what a tensor rank has of them, for `compute_of` alone.

    With `fp8` a checkpoint that is in FP8 is loaded as it is. fp32 because not every CPU multiplies bf16 (Zen 3 does
    not). They go to `device` piece by piece as they are read. `progress` is as in `load_weights`. CheckpointError or
    ValueError with a sentence.
    """
    with torch.device("meta"), _WithoutInitialValues():
        model = ArcticModel(config, part.layers, embed=part.embed, lm_head=part.lm_head)
    model.to(_DTYPES.get(weights, torch.float32))
    if weights == "fp8":
        take_fp8_form(model, folder)
    if share != WHOLE:
        take_share(model, share)
    model.requires_grad_(False)
    _check_room(model, device)
    load_weights(model, folder, device=device, share=share, progress=progress)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("Loaded layers %d to %d, %d parameters", part.layers.start, part.layers.stop - 1, parameters)
    return model


def _check_room(model: ArcticModel, device: torch.device) -> None:
    """Raise ValueError where a GPU's free memory is less than a model, still on the meta device, takes."""
    if device.type == "cpu":
        return
    weights = sum(tensor.numel() * tensor.itemsize for tensor in (*model.parameters(), *model.buffers()))
    free, total = torch.cuda.mem_get_info(device)
    if weights > free:
        raise ValueError(
            f"the weights of this rank's layers take {readable(weights)}, and of its GPU's {readable(total)} "
            f"{readable(free)} are free; write a greater parallelism.pipeline, or quantization.weights: fp8"
        )


def prepare(model: ArcticModel) -> None:
    """Let a loaded model take the memory that it computes in, before what is left is given to keys and values.

    Compiled code and a GPU take the weights over as they are.
    """
    on_cpu = all(parameter.device == CPU for parameter in model.parameters())
    if on_cpu and library() is None:
        _prepare_for_torch(model)


def _prepare_for_torch(model: ArcticModel) -> None:
    """Make it invariant, with a working copy where memory allows; again is nothing."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    make_invariant(model, working_copy=4 * parameters < available_memory() // 2)


class Compute(Protocol):
    """What does the arithmetic of a rank."""

    def run(self, parts: Sequence[Part], x_TD: Tensor | None) -> Tensor:
        """Return the hidden states [T, D] after this rank's layers.

        `x_TD` are those of the rank before, and may be overwritten; None on the first, which has the parts' tokens.
        """
        ...

    def logits(self, x_TD: Tensor, rows: Sequence[int]) -> tuple[Tensor, Likeliest]:
        """Return the logits [R, V] of some rows, and the likeliest token of each."""
        ...

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """Have adapters for the parts that name them, by their place; what of them stands on other layers is left."""
        ...

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part of all steps so far, as far as it measures them."""
        ...


class TorchRank:
    """Plain torch, where there is no compiled code for the machine, and the reference for it."""

    def __init__(self, model: ArcticModel, cache: PagedCache) -> None:
        self._model = model
        self._cache = cache
        self._frequencies_H2 = rotary_frequencies(model.config, length=model.config.max_position_embeddings)
        _prepare_for_torch(model)
        self._adapted: list[AdaptedLinear] = []

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """See `Compute`."""
        self._adapted = adapt_model(self._model, adapters)

    def run(self, parts: Sequence[Part], x_TD: Tensor | None) -> Tensor:
        """See `Compute`."""
        if x_TD is None:
            x_TD = self._model.embed(torch.tensor([token for part in parts for token in part.tokens])).float()
        positions_T = torch.cat([torch.arange(part.start, part.end) for part in parts])
        for linear in self._adapted:
            linear.parts = [(part.adapter, len(part.tokens)) for part in parts]
        attend = PagedAttend(self._cache, parts, self._frequencies_H2)
        x_BTD, _ = self._model.run_layers(x_TD[None], positions_T[None], attend)
        return x_BTD[0]

    def logits(self, x_TD: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """See `Compute`."""
        logits_RV = self._model.logits(x_TD[list(rows)])
        return logits_RV, logits_RV.numpy().argmax(-1).tolist()  # faster than torch's over a dimension

    def seconds(self) -> dict[str, float]:
        """See `Compute`."""
        return {}


def compute_of(
    model: ArcticModel,
    cache: PagedCache,
    tensor: int = 1,
    *,
    whole_experts: bool = False,
    team: Team | None = None,
    rounds: bool = False,
) -> Compute:
    """Return the fastest for where the cache is, with so many tensor ranks; it takes the model's weights over.

    These share out whole experts, or a slice of each. Torch computes as one rank: the answers are the same to the bit
    for any number. Where tensor ranks have GPUs and processes of their own, this is the compute of one of a `team`,
    whose slice the model is, and these answers are not: what is added up is cut in other places. `rounds` is as in
    `CudaRank`, or as in `KernelRank`, which then there must be code for.
    """
    if cache.device.type == "cuda" or team is not None:
        # Triton takes a second to import, and is not there where there is no GPU.
        from arctic_workers.inference.engines.native.cuda.rank import CudaRank

        return CudaRank(model, cache, *(() if team is None else (team.share, team.add)), rounds=rounds)
    threads = torch.get_num_threads()
    rank = kernel_rank(model, cache, threads, tensor, whole_experts=whole_experts, rounds=rounds)
    return rank or TorchRank(model, cache)


class Runner:
    """Runs the slice of one pipeline rank over a step's parts."""

    def __init__(
        self,
        model: ArcticModel,
        cache: PagedCache,
        tensor: int = 1,
        adapters: Sequence[Adapter] = (),
        *,
        whole_experts: bool = False,
        team: Leader | None = None,
        rounds: bool = False,
    ) -> None:
        """`tensor`, `whole_experts`, `team` and `rounds` are as in `compute_of`, `adapters` as in `Compute.adapt`."""
        self.device = cache.device
        """Where hidden states are."""
        self._team = team
        self._compute = compute_of(model, cache, tensor, whole_experts=whole_experts, team=team, rounds=rounds)
        if adapters:
            self._compute.adapt(adapters)

    def run(self, parts: Sequence[Part], x_TD: Tensor | None) -> Tensor:
        """See `Compute`. Raises PeerLost where another tensor rank is gone."""
        if self._team is not None:
            self._team.begin(parts, x_TD)
        return self._compute.run(parts, x_TD)

    def stop(self) -> None:
        """Let the other tensor ranks end."""
        if self._team is not None:
            self._team.stop()

    def seconds(self) -> dict[str, float]:
        """See `Compute`."""
        return self._compute.seconds()

    def sample(self, parts: Sequence[Part], x_TD: Tensor) -> list[Drawn]:
        """Tell a part's known tokens and choose those that follow it, as it asks, part by part; on the last rank."""
        drawn = iter(self._draw(parts, x_TD))
        answers = []
        start = 0
        for part in parts:
            if part.known is not None:
                answers += self._tell(part.known, x_TD, start)
            if part.draw is not None:
                answers += islice(drawn, part.draws)
            start += len(part.tokens)
        return answers

    def _draw(self, parts: Sequence[Part], x_TD: Tensor) -> list[Drawn]:
        rows: list[int] = []
        draws: list[tuple[Draw, int]] = []
        end = 0
        for part in parts:
            end += len(part.tokens)
            if part.draw is not None:
                rows += range(end - part.draws, end)
                draws += [(part.draw, position) for position in range(part.end - part.draws + 1, part.end + 1)]
        return draw_tokens(*self._compute.logits(x_TD, rows), draws) if rows else []

    def _tell(self, known: Known, x_TD: Tensor, start: int) -> list[Drawn]:
        told = []
        for at in range(0, len(known.tokens), LOGITS_AT_ONCE):
            tokens = known.tokens[at : at + LOGITS_AT_ONCE]
            rows = range(start + at, start + at + len(tokens))
            logits_RV, _ = self._compute.logits(x_TD, rows)
            told += tell_tokens(logits_RV, range(len(tokens)), tokens, [known.top] * len(tokens))
        return told
