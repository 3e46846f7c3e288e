"""What of a manifest each engine can't do, as rules: one table for the API server, `arctic` and the workers.

A line goes when an engine learns what it refuses.
"""

from collections.abc import Callable, Iterable
from typing import Any

from arctic_api.engine_options import ENGINES, OPTIONS_OF, EngineName
from arctic_api.inference import ArcticInferenceSpec, Attention, Quantization
from arctic_api.rule import Judge, Rule

_OWN = "the container decides that"


def _rule(engine: EngineName, field: str, cel: str | Judge, holds: Callable[[Any], bool], message: str) -> Rule:
    """A rule about the specifications that name one engine; `holds` gets the value of the field."""
    return Rule(
        ArcticInferenceSpec,
        f"self.engine.name != '{engine}' || {cel}" if isinstance(cel, str) else cel,
        lambda spec: spec.engine.name != engine or holds(_value(spec, field)),
        f"with engine {engine}: {message}",
        f".{field}",
    )


def _value(spec: ArcticInferenceSpec, field: str) -> Any:
    value: Any = spec
    for step in field.split("."):
        alias = {(info.alias or name): name for name, info in type(value).model_fields.items()}
        value = getattr(value, alias[step])
    return value


def _only(engine: EngineName, field: str, *values: str | int | bool, why: str = "") -> Rule:
    literals = [str(value).lower() if isinstance(value, bool) else repr(value) for value in values]
    shown = " or ".join(literal.strip("'") for literal in literals)
    message = f"{why or f'{_name(field)} other than {shown} is not supported'}: write {shown}"
    return _rule(engine, field, f"self.{field} in [{', '.join(literals)}]", lambda value: value in values, message)


def _prefixes(engine: EngineName, *values: bool, why: str = "") -> Rule:
    """CEL does not see the field, as its type is neither a truth value nor text."""
    shown = " or ".join(str(value).lower() for value in values)
    message = f"{why or f'prefixCaching other than {shown} is not supported'}: write {shown}"
    return _rule(engine, "batching.prefixCaching", Judge.OPERATOR, lambda value: value in values, message)


def _unset(engine: EngineName, field: str, why: str = "") -> Rule:
    message = f"{why or f'{_name(field)} is not supported'}: leave it out"
    return _rule(engine, field, f"!has(self.{field})", lambda value: value is None, message)


def _set(engine: EngineName, field: str, message: str) -> Rule:
    return _rule(engine, field, f"has(self.{field})", lambda value: value is not None, message)


def _bounded(engine: EngineName) -> Rule:
    return _rule(
        engine,
        "attention.maxLength",
        "type(self.attention.maxLength) == int",
        lambda length: length != "unlimited",
        "maxLength unlimited is not supported: write a number of tokens",
    )


def _name(field: str) -> str:
    return field.rpartition(".")[2]


def _foreign_options(engine: EngineName) -> Iterable[Rule]:
    """Refuse the options of the other engines, by name."""
    for option in sorted({name for names in OPTIONS_OF.values() for name in names} - set(OPTIONS_OF[engine])):
        yield Rule(
            ArcticInferenceSpec,
            f"self.engine.name != '{engine}' || !has(self.engine.options) || !has(self.engine.options.{option})",
            lambda spec, option=option: (
                spec.engine.name != engine
                or spec.engine.options is None
                or getattr(spec.engine.options, option) is None
            ),
            f"{option} is no option of engine {engine}: leave it out",
            f".engine.options.{option}",
        )


ENGINE_RULES = (
    _rule(
        "native",
        "attention.ropeScaling",
        "(!has(self.attention.ropeScaling) || self.attention.ropeScaling.type != 'dynamic')",
        lambda scaling: scaling is None or scaling.type != "dynamic",
        "type dynamic would make an answer depend on the longest sequence beside it: write linear or yarn",
    ),
    _unset("native", "model.inImage", "the image brings no model"),
    _unset("native", "engine.credentials"),
    _unset("native", "engine.cacheClaim"),
    _rule(
        "vllm",
        "quantization",
        "(self.quantization.kvCache == 'fp8' || "
        "(self.quantization.kvCache == 'fp32') == (self.quantization.weights == 'fp32'))",
        lambda formats: formats.kv_cache == "fp8" or (formats.kv_cache == "fp32") == (formats.weights == "fp32"),
        "kvCache is fp8 or the format that is computed in: write fp32 with weights fp32, bf16 with others",
    ),
    _unset("vllm", "attention.window"),
    _bounded("vllm"),
    _unset("vllm", "attention.ropeScaling"),
    _prefixes("vllm", False, True),
    _unset("vllm", "batching.targetInterTokenLatency"),
    _unset("vllm", "batching.suffixDecoding"),
    _unset("vllm", "model.adapters", "adapters are served by engine native alone"),
    _unset("vllm", "model.inImage", "the image brings no model"),
    _unset("vllm", "engine.credentials"),
    _unset("vllm", "engine.cacheClaim"),
    _only("tensorrt-llm", "quantization.weights", "fp8", "bf16"),
    _only("tensorrt-llm", "quantization.kvCache", "bf16", "fp8"),
    _only("tensorrt-llm", "attention.sinks", 0, why="its PyTorch backend ignores attention sinks"),
    _bounded("tensorrt-llm"),
    _unset("tensorrt-llm", "attention.ropeScaling"),
    _prefixes("tensorrt-llm", False, True),
    _unset("tensorrt-llm", "batching.targetInterTokenLatency"),
    _unset("tensorrt-llm", "batching.suffixDecoding"),
    _unset("tensorrt-llm", "model.adapters", "adapters are served by engine native alone"),
    _unset("tensorrt-llm", "model.inImage", "the image brings no model"),
    _unset("tensorrt-llm", "engine.credentials"),
    _unset("tensorrt-llm", "engine.cacheClaim"),
    _set("nim", "engine.image", "name NVIDIA's container"),
    _set("nim", "model.inImage", "write inImage: true, as the container serves the model that it brings"),
    _only("nim", "quantization.weights", Quantization().weights, why=_OWN),
    _only("nim", "quantization.kvCache", Quantization().kv_cache, why=_OWN),
    _only("nim", "parallelism.pipeline", 1),
    _unset("nim", "attention.window", _OWN),
    _rule(
        "nim",
        "attention.maxLength",
        f"type(self.attention.maxLength) == int && int(self.attention.maxLength) == {Attention().max_length}",
        lambda length: length == Attention().max_length,
        f"{_OWN}: leave it out",
    ),
    _unset("nim", "attention.ropeScaling", _OWN),
    _prefixes("nim", False, why=_OWN),
    _unset("nim", "batching.targetInterTokenLatency", _OWN),
    _unset("nim", "batching.suffixDecoding", _OWN),
    _unset("nim", "model.adapters", "adapters are served by engine native alone"),
    _unset("nim", "service.cors", "the container answers browsers by itself"),
    *(rule for engine in ENGINES for rule in _foreign_options(engine)),
)


def engine_problems(spec: ArcticInferenceSpec) -> list[str]:
    """Return a sentence for each thing that a specification asks of its engine and the engine can't do."""
    return [f"{rule.field_path[1:]}: {rule.message}" for rule in ENGINE_RULES if not rule.predicate(spec)]
