"""From arguments to vLLM's own configuration, where vLLM checks them."""

from typing import Any

from vllm import AsyncEngineArgs
from vllm.config import VllmConfig

from arctic_workers.inference.engine import Refused


def configure(arguments: dict[str, Any], *, headless: bool) -> VllmConfig:
    """Return vLLM's configuration; `headless` on all pods but the first. Raises Refused with vLLM's own reason."""
    try:
        return AsyncEngineArgs(**arguments).create_engine_config(headless=headless)
    except (ValueError, NotImplementedError) as error:  # pydantic's errors are ValueErrors
        raise Refused(f"vLLM refuses the manifest: {error}") from None
