"""See `tensorrt_llm_arguments`."""

from tensorrt_llm_arguments import TorchLlmArgs

__all__ = ["TorchLlmArgs"]
