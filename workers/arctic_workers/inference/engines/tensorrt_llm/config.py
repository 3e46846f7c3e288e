"""Arctic's configuration for Hugging Face's `AutoConfig`, by which TensorRT-LLM reads `config.json`.

transformers knows no `model_type: arctic` (looked up in 4.57.3, which TensorRT-LLM 1.2.1 requires), and the class that
was published with the model comes by `trust_remote_code`, which stays off.
"""

from typing import Any

from transformers import AutoConfig, PretrainedConfig  # type: ignore[import-not-found, unused-ignore]

from arctic_model.config import ArcticConfig


class ArcticHuggingFaceConfig(PretrainedConfig):  # type: ignore[misc]
    """Attributes are the keys of `config.json`; what a file leaves out is as in the published one."""

    model_type = "arctic"

    def __init__(self, **fields: Any) -> None:
        published = ArcticConfig().to_dict()
        published.pop("model_type")  # the class says it
        super().__init__(**{**published, **fields})


def register() -> None:
    """Tell `AutoConfig` of the class; again is no fault."""
    AutoConfig.register(ArcticHuggingFaceConfig.model_type, ArcticHuggingFaceConfig, exist_ok=True)
