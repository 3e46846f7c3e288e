"""The Arctic's `config.json` as the class that vLLM wants it in: transformers has none."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig  # type: ignore[import-not-found]  # comes with vLLM alone

from arctic_model.config import ArcticConfig as Architecture

PUBLISHED = Architecture.preset("arctic")


class ArcticConfig(PreTrainedConfig):  # type: ignore[misc]
    """What vLLM reads of a `config.json` with `model_type` `arctic`, checked by the rules of `arctic_model.config`.

    Raises ValueError where the file is not an Arctic's, or where vLLM would compute another model from it.
    """

    model_type = "arctic"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = PUBLISHED.vocab_size
    hidden_size: int = PUBLISHED.hidden_size
    intermediate_size: int = PUBLISHED.intermediate_size
    num_hidden_layers: int = PUBLISHED.num_hidden_layers
    num_attention_heads: int = PUBLISHED.num_attention_heads
    num_key_value_heads: int = PUBLISHED.num_key_value_heads
    num_local_experts: int = PUBLISHED.num_local_experts
    num_experts_per_tok: int = PUBLISHED.num_experts_per_tok
    moe_layer_frequency: int = PUBLISHED.moe_layer_frequency
    parallel_attn_mlp_res: bool = PUBLISHED.parallel_attn_mlp_res
    use_residual: bool = PUBLISHED.use_residual
    hidden_act: str = PUBLISHED.hidden_act
    max_position_embeddings: int = PUBLISHED.max_position_embeddings
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = PUBLISHED.sliding_window
    rms_norm_eps: float = PUBLISHED.rms_norm_eps
    tie_word_embeddings: bool = PUBLISHED.tie_word_embeddings
    bos_token_id: int | None = PUBLISHED.bos_token_id
    eos_token_id: int | list[int] | None = PUBLISHED.eos_token_id
    default_theta = PUBLISHED.rope_theta

    def __post_init__(self, **kwargs: Any) -> None:
        """Check; `kwargs` are the file's keys that have no field, the older forms of rotary positions among them."""
        super().__post_init__(**kwargs)
        self.architecture()

    def architecture(self) -> Architecture:
        """The same configuration as our own class holds it."""
        # vLLM has quantised layers of its own: that checkpoints are stored unquantised is a rule for our model alone.
        values = {key: value for key, value in self.to_dict().items() if key != "quantization_config"}
        architecture = Architecture.from_dict({key: value for key, value in values.items() if value is not None})
        if architecture.rope is not None and architecture.rope.type == "dynamic":
            raise ValueError(
                "rope_scaling: vLLM gives `dynamic` one base for all lengths, which is another model; write `linear` "
                "or `yarn`, or serve this checkpoint with the native engine"
            )
        return architecture
