"""The trainings and services that costs are fitted to, and others that are predicted with those."""

from dataclasses import dataclass

from arctic_model.config import ArcticConfig
from arctic_model.planning.training_time import RankStep


def config_of(
    hidden: int,
    inner: int,
    layers: int,
    experts: int,
    chosen: int,
    vocabulary: int = 8192,
    *,
    every: int = 1,
    head: int = 64,
) -> ArcticConfig:
    """An Arctic of some size, with a key-value head for each two heads."""
    heads = max(hidden // head, 2)
    return ArcticConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        num_local_experts=experts,
        num_experts_per_tok=chosen,
        moe_layer_frequency=every,
        bos_token_id=None,
        eos_token_id=None,
    )


FITTED_TRAININGS = {
    "fit 1": RankStep(config_of(128, 256, 2, 4, 1, 4096), 1, 4, 64),
    "fit 2": RankStep(config_of(128, 192, 4, 6, 2), 2, 2, 96),
    "fit 3": RankStep(config_of(256, 256, 4, 8, 2, 4096), 1, 2, 128),
    "fit 4": RankStep(config_of(256, 512, 2, 16, 2), 1, 2, 128),
    "fit 5": RankStep(config_of(384, 384, 4, 8, 1), 1, 2, 96),
    "fit 6": RankStep(config_of(512, 512, 2, 4, 2), 1, 2, 64),
    "fit 7": RankStep(config_of(512, 256, 4, 12, 2), 1, 1, 128),
    "fit 8": RankStep(config_of(256, 128, 8, 16, 4, 2048), 1, 1, 128),
    "fit 9": RankStep(config_of(512, 512, 2, 8, 2, 16384), 1, 1, 256),
    "fit 10": RankStep(config_of(128, 512, 6, 4, 2, 2048, every=2), 4, 2, 64),
    "fit 11": RankStep(config_of(384, 768, 2, 6, 3, 4096), 1, 1, 256),
    "fit 12": RankStep(config_of(640, 640, 2, 8, 2), 1, 1, 128),
    "fit 13": RankStep(config_of(192, 192, 3, 4, 1, 4096), 1, 1, 512),
    "fit 14": RankStep(config_of(128, 128, 4, 8, 2, 4096), 1, 8, 128),
}
PREDICTED_TRAININGS = {
    "tiny, as its example": RankStep(ArcticConfig.preset("arctic-tiny"), 4, 8, 128),
    "small": RankStep(ArcticConfig.preset("arctic-small"), 1, 2, 128),
    "every other layer dense, top 1": RankStep(config_of(256, 384, 6, 12, 1, every=2), 3, 2, 96),
    "many experts, top 4": RankStep(config_of(384, 256, 4, 16, 4, 4096), 1, 2, 128),
    "wide, long sequence": RankStep(config_of(768, 512, 2, 4, 2), 1, 1, 384),
}
TRAINING_CASES = FITTED_TRAININGS | PREDICTED_TRAININGS


@dataclass(frozen=True)
class Load:
    """Requests that come at once, and are alike."""

    model: str
    """Of `MODELS`."""
    batch: int
    prompt: int
    answer: int


MODELS = {
    "fit a": config_of(768, 1536, 8, 8, 2),
    "fit b": config_of(1280, 1280, 5, 12, 2),
    "fit c": config_of(512, 1024, 12, 16, 2),
    "top 1": config_of(1024, 2048, 6, 4, 1),
    "medium": config_of(1024, 1024, 8, 16, 2),
    "top 4": config_of(640, 640, 10, 16, 4),
}
FITTED_MODELS = ("fit a", "fit b", "fit c")
FITTED_LOADS = {
    f"{model}, {batch} x {prompt}": Load(model, batch, prompt, answer)
    for model in FITTED_MODELS
    for batch, prompt, answer in (
        (1, 16, 24),
        (2, 32, 16),
        (4, 96, 16),
        (8, 16, 12),
        (16, 16, 12),
        (32, 8, 10),
        (64, 8, 8),
        (1, 256, 2),
        (1, 96, 2),
    )
}
PREDICTED_LOADS = {
    "top 1, 1 request": Load("top 1", 1, 64, 64),
    "top 1, 24 requests": Load("top 1", 24, 48, 32),
    "466M, 4 requests, longer prompts": Load("medium", 4, 160, 32),
    "466M, 48 requests": Load("medium", 48, 12, 24),
    "top 4, 12 requests": Load("top 4", 12, 40, 32),
}
