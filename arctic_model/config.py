"""What an Arctic is: the published configuration, its checks, and the presets. No torch here.

An `ArcticConfig` holds a Hugging Face `config.json`, key for key: what it does not know it keeps. The defaults are
those of the published file of Snowflake Arctic (480B), not those of the configuration class that was published with it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

CONFIG_FILE = "config.json"

# Hugging Face leaves out of a file what equals its class's defaults, and these differ between that class and the
# published file: in a file without them, nobody can tell which was meant.
AMBIGUOUS_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_layer_frequency",
    "rope_theta",
)


class RopeScaling(BaseModel):
    """How rotary positions are stretched beyond the length that the model was trained on.

    `linear`: positions divided by `factor`. `dynamic`: NTK-aware base that grows with the length. `yarn`: NTK by parts
    (Peng et al. 2023, arXiv 2309.00071), with `beta_fast` and `beta_slow` in rotations over the original length. Keys
    of `yarn` mean what they do in transformers' `_compute_yarn_parameters`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["linear", "dynamic", "yarn"]
    factor: float
    original_max_position_embeddings: PositiveInt | None = None
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    truncate: bool = True
    attention_factor: PositiveFloat | None = None
    mscale: NonNegativeFloat | None = None
    mscale_all_dim: NonNegativeFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_newer_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "rope_type" in data:
            return {**data, "type": data["rope_type"]}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise ValueError(f"factor is {self.factor}; write a number of at least 1")
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast}) must be greater than beta_slow ({self.beta_slow})")
        return self


class ArcticConfig(BaseModel):
    """The configuration of one Arctic; immutable. Field names are those of Hugging Face's `config.json`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, protected_namespaces=())

    architectures: list[str] = ["ArcticForCausalLM"]
    model_type: Literal["arctic"] = "arctic"
    vocab_size: PositiveInt = 32000
    hidden_size: PositiveInt = 7168
    intermediate_size: PositiveInt = 4864
    num_hidden_layers: PositiveInt = 35
    num_attention_heads: PositiveInt = 56
    num_key_value_heads: PositiveInt = 8
    num_local_experts: PositiveInt = 128
    num_experts_per_tok: PositiveInt = 2
    moe_layer_frequency: PositiveInt = 1
    parallel_attn_mlp_res: bool = True
    use_residual: bool = True
    router_aux_loss_coef: float = 0.001
    moe_token_dropping: bool = False
    moe_train_capacity_factor: PositiveFloat = 1.0
    moe_min_capacity: NonNegativeInt = 0
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: PositiveInt = 4096
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: dict[str, Any] | None = None
    sliding_window: PositiveInt | None = None
    rms_norm_eps: PositiveFloat = 1e-5
    initializer_range: PositiveFloat = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 31998
    eos_token_id: int | list[int] | None = 31999
    torch_dtype: str = "bfloat16"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is no multiple of num_attention_heads ({self.num_attention_heads}); "
                "write a hidden_size that the heads divide"
            )
        if self.head_dim % 2:
            raise ValueError(f"hidden_size / num_attention_heads is {self.head_dim}; rotary positions need it even")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is no multiple of num_key_value_heads "
                f"({self.num_key_value_heads}); write a number of key-value heads that divides the heads"
            )
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) is more than num_local_experts "
                f"({self.num_local_experts}); a token cannot have more experts than there are"
            )
        if self.expert_layers and not (self.parallel_attn_mlp_res and self.use_residual):
            raise ValueError(
                "parallel_attn_mlp_res or use_residual is false: experts without the residual MLP beside them are not "
                "an Arctic; write true for both"
            )
        self._check_foreign_keys(self.model_extra or {})
        self.rope  # noqa: B018  parsing it is the check
        return self

    def _check_foreign_keys(self, extra: dict[str, Any]) -> None:
        """Refuse keys of Hugging Face's that would make it another model: kept like unknown ones, they did nothing."""
        for key in ("attention_bias", "mlp_bias"):
            if extra.get(key):
                raise ValueError(f"{key} is true, and an Arctic has no biases: this checkpoint cannot be loaded")
        head_dim = extra.get("head_dim")
        if head_dim not in (None, self.head_dim):
            raise ValueError(f"head_dim ({head_dim}) times the heads is not hidden_size; an Arctic needs that")
        if extra.get("quantization_config") is not None:
            raise ValueError("quantization_config is set: save the checkpoint unquantised, without it")

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> RopeScaling | None:
        """`rope_scaling` read and checked; None where positions are not stretched."""
        scaling = self.rope_scaling
        if scaling is None or scaling.get("rope_type", scaling.get("type")) == "default":
            return None
        try:
            return RopeScaling.model_validate(scaling)
        except ValidationError as error:
            raise ValueError(f"rope_scaling: {_sentences(error)}") from None

    def has_experts(self, layer: int) -> bool:
        """Whether the layer of that index (from 0) has experts and a residual MLP, rather than one plain MLP."""
        return (layer + 1) % self.moe_layer_frequency == 0

    @property
    def expert_layers(self) -> int:
        """Number of layers that have experts."""
        return self.num_hidden_layers // self.moe_layer_frequency

    def capacity(self, tokens: int) -> int:
        """Choices that an expert takes of those of `tokens` tokens, where training drops what is beyond.

        An even share of them, times `moe_train_capacity_factor`, and at least `moe_min_capacity`.
        """
        even = tokens * self.num_experts_per_tok / self.num_local_experts
        return max(math.ceil(even * self.moe_train_capacity_factor), self.moe_min_capacity)

    def with_vocab_size(self, vocab_size: int) -> ArcticConfig:
        """The same model for a tokenizer of `vocab_size` tokens."""
        return self.replace(vocab_size=vocab_size)

    def stretched(self, kind: str, factor: float) -> ArcticConfig:
        """The same model with `factor` times the positions; `kind` is `linear` or `yarn`.

        Raises ValueError for `dynamic`, which has no positions of its own, and where they are stretched already.
        """
        if kind == "dynamic":
            raise ValueError("dynamic scaling turns a document by the longest one beside it: write linear or yarn")
        if self.rope is not None:
            raise ValueError(
                f"rope_scaling is {self.rope.type} already, by {self.rope.factor:g}: positions are stretched once; "
                "leave model.ropeScaling out"
            )
        original = self.max_position_embeddings
        return self.replace(
            rope_scaling={"type": kind, "factor": factor, "original_max_position_embeddings": original},
            max_position_embeddings=int(original * factor),
        )

    def replace(self, **changes: Any) -> ArcticConfig:
        """A checked copy with some fields changed."""
        return _validated({**self.to_dict(), **changes}, "configuration")

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`; what `from_dict` read comes back, unknown keys too."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = "configuration") -> ArcticConfig:
        """Read the content of a `config.json` of an Arctic, or of a Llama without experts.

        `source` is what an error calls the place that `data` came from. Raises ValueError with one sentence a fault.
        """
        data = _in_older_names(data)
        kind = data.get("model_type", "arctic")
        if kind == "llama":
            return _validated(_llama(data, source), source)
        if kind != "arctic":
            raise ValueError(f"{source}: model_type is {kind!r}; this loads 'arctic' and 'llama'")
        if missing := [key for key in AMBIGUOUS_KEYS if key not in data]:
            raise ValueError(f"{source} misses {', '.join(missing)}: write them, or name a preset")
        return _validated(data, source)

    @classmethod
    def from_folder(cls, folder: Path, *, quantized: bool = False) -> ArcticConfig:
        """Read `config.json` in a checkpoint folder, whose weights may be stored quantised if the caller says so.

        Raises ValueError with a sentence that names the file.
        """
        path = Path(folder) / CONFIG_FILE
        data = read_json(path)
        if quantized:
            data.pop("quantization_config", None)
        return cls.from_dict(data, str(path))

    @classmethod
    def preset(cls, name: str) -> ArcticConfig:
        """The preset of that name, one of `PRESETS`. Raises ValueError that lists them."""
        try:
            return PRESETS[name]
        except KeyError:
            raise ValueError(f"there is no preset {name!r}; write one of {', '.join(sorted(PRESETS))}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file. Raises ValueError with a sentence that names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: name a folder that holds a whole Hugging Face checkpoint") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


def _validated(data: dict[str, Any], source: str) -> ArcticConfig:
    try:
        return ArcticConfig.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{source}: {_sentences(error)}") from None


def _sentences(error: ValidationError) -> str:
    def sentence(fault: Any) -> str:
        where = ".".join(str(part) for part in fault["loc"])
        what = fault["msg"].removeprefix("Value error, ")
        return f"{where}: {what} (it is {fault['input']!r})" if where else what

    return "; ".join(sentence(fault) for fault in error.errors())


def _in_older_names(data: dict[str, Any]) -> dict[str, Any]:
    """Newer files of Hugging Face have `dtype`, and `rope_theta` and `rope_scaling` in one object; all forms are read.

    What is returned has the older ones alone: beside a changed field its other form would contradict it. Which of two
    counts is as in `convert_rope_params_to_dict` of transformers.
    """
    # transformers writes null for a name that is not set.
    data = {
        key: value for key, value in data.items() if value is not None or key not in ("torch_dtype", "architectures")
    }
    dtype, newer = data.pop("dtype", None), data.pop("rope_parameters", None)
    if isinstance(dtype, str):
        data.setdefault("torch_dtype", dtype)
    rope = data.get("rope_scaling") or newer
    if isinstance(rope, dict) and "rope_theta" in rope:
        data["rope_theta"] = rope["rope_theta"]
        rope = {key: value for key, value in rope.items() if key != "rope_theta"} or None
    return {**data, "rope_scaling": rope}


def _llama(data: dict[str, Any], source: str) -> dict[str, Any]:
    """A Llama's configuration as that of an Arctic whose layers are all dense: a layer without experts is Llama's."""
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if key not in data:
            raise ValueError(f"{source} misses {key}: write it")
        if type(data[key]) is not int:
            raise ValueError(f"{source}: {key} is {data[key]!r}; write a whole number")
    experts = {"num_local_experts": 1, "num_experts_per_tok": 1, "moe_layer_frequency": data["num_hidden_layers"] + 1}
    # Llama's own defaults, where its file says nothing.
    llama = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
    arctic = {"model_type": "arctic", "architectures": ["ArcticForCausalLM"], "tie_word_embeddings": False}
    if data.get("num_key_value_heads") is None:
        arctic["num_key_value_heads"] = data["num_attention_heads"]
    return {**llama, **experts, **data, **arctic}


PRESETS: dict[str, ArcticConfig] = {
    "arctic": ArcticConfig(),
    "arctic-tiny": ArcticConfig(
        vocab_size=8192,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        max_position_embeddings=1024,
        initializer_range=0.05,  # measured: a small model learns faster from here than from 0.02
        bos_token_id=None,
        eos_token_id=None,
    ),
    "arctic-small": ArcticConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=12,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "arctic-466m": ArcticConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_local_experts=16,
        bos_token_id=None,
        eos_token_id=None,
    ),
}
