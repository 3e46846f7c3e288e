"""The entry point that vLLM calls in each of its processes: it makes the Arctic known there. Nothing else is done."""

from __future__ import annotations

ARCHITECTURE = "ArcticForCausalLM"
MODEL = "arctic_workers.inference.engines.vllm.model:ArcticForCausalLM"


def register() -> None:
    """Register the configuration with transformers and the model with vLLM; may be called any number of times.

    The model goes by its name alone: importing it would initialise CUDA in a process that vLLM means to fork.
    """
    from transformers import AutoConfig  # type: ignore[import-not-found]  # comes with vLLM alone
    from vllm import ModelRegistry

    from arctic_workers.inference.engines.vllm.config import ArcticConfig

    AutoConfig.register(ArcticConfig.model_type, ArcticConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, MODEL)
