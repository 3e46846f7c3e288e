"""What a schema cannot say, as one table: each rule once in CEL for the API server and once in Python for a laptop.

Nothing here but rules: who evaluates them is in `crd.py` (the API server, by the schema) and in `verdict.py` (locally).
"""

import json
import operator
import re
from collections.abc import Callable, Iterable
from functools import cache

from arctic_api.ablation_rules import ABLATION_RULES
from arctic_api.common import (
    MAX_OBJECT_NAME,
    NAME_PATTERN,
    ClaimVolume,
    KeyValue,
    Manifest,
    Metadata,
    Resource,
    Resources,
    WorkerTemplate,
    parse_duration,
    parse_tokens,
)
from arctic_api.engine_rules import ENGINE_RULES
from arctic_api.evaluation import EvaluatedModel
from arctic_api.evaluation_rules import EVALUATION_RULES
from arctic_api.inference import (
    ArcticInference,
    ArcticInferenceSpec,
    Attention,
    Autoscaling,
    AutoscalingTarget,
    Canary,
    CanaryAnalysis,
    InferenceModel,
    Rollout,
    ServedAdapter,
)
from arctic_api.rule import Judge, Rule
from arctic_api.training import (
    OWN_SUITES,
    ArcticTraining,
    ArcticTrainingSpec,
    Backoff,
    Batch,
    Checkpoint,
    Evaluation,
    Every,
    LearningRate,
    Source,
    Stage,
    SuiteData,
    Tokenizer,
    TrainingModel,
    TrainingParallelism,
    Upcycle,
    Validation,
    WeightsFrom,
)

RESERVED_PREFIX = "arctic.dev/"
RESERVED_VARIABLES = "ARCTIC_"
RESERVED_FOLDERS = (
    "/dev",
    "/etc/arctic",
    "/home/arctic",
    "/opt/arctic",
    "/tmp",  # noqa: S108  the workers' own
    "/var/lib/arctic/base",
    "/var/lib/arctic/store",
)
"""Where every worker has something mounted already."""
PRESET_EXPERTS = {"arctic": 128, "arctic-466m": 16, "arctic-small": 12, "arctic-tiny": 8}
"""Experts in each layer of a preset."""
PRESET_KEY_VALUE_HEADS = {"arctic": 8, "arctic-466m": 4, "arctic-small": 4, "arctic-tiny": 2}
"""Key-value heads of a preset, which divide its attention heads."""
PRESET_POSITIONS = {"arctic": 4096, "arctic-466m": 4096, "arctic-small": 2048, "arctic-tiny": 1024}
"""Longest sequence that a preset takes."""
FP8_MULTIPLE = 16
"""What divides each side of a matrix that is multiplied in FP8: the bytes of one load of the units that do it."""
MAX_WORLD_BYTES = 112 * 1024
"""Of the 128 KiB that Linux takes in one variable; the rest is for what a world says besides."""
DNS_LABEL = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUALIFIED_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)


def cel_tokens(field: str) -> str:
    """Return the CEL expression for the number of tokens that a field means: the twin of `parse_tokens`."""
    units = "{'k': 1, 'M': 1000, 'G': 1000000, 'T': 1000000000}"
    number, unit = f"{field}.substring(0, size({field}) - 1)", f"{field}.substring(size({field}) - 1)"
    thousandths = f"int(double({number}) * 1000.0 + 0.5)"  # three decimals at most, so this is exact
    return (
        f"(type({field}) == int ? int({field}) : "
        f"{field}.matches('[kMGT]$') ? {thousandths} * {units}[{unit}] : int({field}))"
    )


def _let(name: str, value: str, cel: str) -> str:
    """Return a CEL expression in which a name stands for a value, true where the expression is.

    The API server copies the schemas of all of a node's fields at each access to one of them, and tries each rule again
    at each write of a status: what is under `spec`, the widest node, is got once. Texts are bound themselves, not the
    object that has them: of a field of a name's the estimate of costs knows no longest length, and refuses the rule.
    """
    return f"[{value}].all({name}, {cel})"


def _cel_some_tokens(field: str) -> str:
    """Return the CEL expression for whether a field means at least one token: any digit but 0 makes it so."""
    return _let("amount", field, "type(amount) == int ? int(amount) > 0 : amount.matches('[1-9]')")


def _of_preset(cel: str) -> str:
    """Return the CEL expression for what must hold of a training's preset, if it names one."""
    return _let("model", "self.model", "!has(model.preset) || " + _let("preset", "model.preset", cel))


def _attribute(where: type[Resource], alias: str) -> str:
    return next(name for name, field in where.model_fields.items() if (field.alias or name) == alias)


def _exactly_one(where: type[Resource], *fields: str) -> Rule:
    attributes = [_attribute(where, field) for field in fields]
    return Rule(
        where,
        f"[{', '.join(f'has(self.{field})' for field in fields)}].filter(present, present).size() == 1",
        lambda node: sum(getattr(node, attribute) is not None for attribute in attributes) == 1,
        f"write exactly one of {', '.join(fields[:-1])} and {fields[-1]}",
    )


def _needs_from(field: str, message: str) -> Rule:
    attribute = _attribute(TrainingModel, field)
    return Rule(
        TrainingModel,
        f"!has(self.{field}) || has(self.from)",
        lambda node: getattr(node, attribute) is None or node.from_ is not None,
        message,
        f".{field}",
    )


def _without_prefix(where: type[Resource], field: str) -> Rule:
    return Rule(
        where,
        f"!has(self.{field}) || self.{field}.all(key, !key.startsWith('{RESERVED_PREFIX}'))",
        lambda node: not any(key.startswith(RESERVED_PREFIX) for key in getattr(node, field) or ()),
        f"names under {RESERVED_PREFIX} are the operator's: write another one",
        f".{field}",
    )


def _qualified_names(where: type[Resource], field: str, judge: Judge) -> Rule:
    attribute = _attribute(where, field)

    def others(node: Resource) -> list[str]:
        keys: Iterable[str] = getattr(node, attribute) or ()
        # Kubernetes does not mind the case of an annotation's name, even before the slash.
        return [key for key in keys if not QUALIFIED_NAME.fullmatch(key.lower() if field == "annotations" else key)]

    return Rule(
        where,
        judge,
        lambda node: not others(node),
        "write names such as app or example.com/app",
        f".{field}",
        detail=lambda node: (
            "write names such as app or example.com/app instead of " + ", ".join(map(repr, others(node)))
        ),
    )


def _whole_devices(field: str) -> Rule:
    """Refuse what Kubernetes calls an extended resource, told by the `/` in its name, in parts or with a unit."""

    def parts(node: Resources) -> list[str]:
        amounts: dict[str, int | str] = getattr(node, field) or {}
        return [name for name, amount in amounts.items() if "/" in name and not re.fullmatch("[0-9]+", str(amount))]

    amount = f"self.{field}[name]"
    return Rule(
        Resources,
        f"!has(self.{field}) || self.{field}.all(name, !name.contains('/') || "
        f"type({amount}) == int || {amount}.matches('^[0-9]+$'))",
        lambda node: not parts(node),
        "devices such as nvidia.com/gpu can't be shared out: write a whole number",
        f".{field}",
        detail=lambda node: f"write a whole number of {', '.join(parts(node))}: devices can't be shared out",
    )


def _unchanged(
    where: type[Resource], field: str, cel: str, predicate: Callable[..., bool], field_path: str = ""
) -> Rule:
    message = f"{field} can't change, as checkpoints depend on it: make another object"
    return Rule(where, cel, predicate, message, field_path, transition=True)


def _missing_sources(spec: ArcticTrainingSpec) -> list[tuple[str, str]]:
    known = {source.name for source in spec.data.sources}
    return [(stage.name, name) for stage in spec.curriculum.stages for name in stage.mixture if name not in known]


def _name_missing_sources(spec: ArcticTrainingSpec) -> str:
    missing = "; ".join(f"stage {stage!r} draws from {name!r}" for stage, name in _missing_sources(spec))
    known = ", ".join(source.name for source in spec.data.sources)
    return f"{missing}: there is no such source; write one of {known}, or add it to data.sources"


def _uneven_stages(spec: ArcticTrainingSpec) -> list[tuple[str, int]]:
    """Return the stages into whose micro-batches a step does not divide, with the tokens of one round of them."""
    degrees = spec.parallelism
    rounds = (
        (stage.name, stage.sequence_length * spec.batch.micro_batch_size * degrees.nodes * degrees.processes_per_node)
        for stage in spec.curriculum.stages
    )
    tokens = [stage_step(spec, stage) * degrees.sequence_parallel for stage in spec.curriculum.stages]
    uneven = ((stage, size) for step, (stage, size) in zip(tokens, rounds, strict=True) if step % size)
    return [(stage, size // degrees.sequence_parallel) for stage, size in uneven]


def stage_step(spec: ArcticTrainingSpec, stage: Stage) -> int:
    """Return the tokens of one update in a stage."""
    own = stage.tokens_per_step
    return parse_tokens(spec.batch.tokens_per_step if own is None else own)


def _simulates_more(spec: ArcticTrainingSpec) -> bool:
    simulated = spec.data.simulated_tokens
    return simulated is None or parse_tokens(simulated) >= sum(parse_tokens(s.tokens) for s in spec.curriculum.stages)


def _suggest_step(spec: ArcticTrainingSpec) -> str:
    stage, size = _uneven_stages(spec)[0]
    asked = next(stage_step(spec, each) for each in spec.curriculum.stages if each.name == stage)
    near = max(1, round(asked / size)) * size
    return (
        f"write a multiple of {size} = sequenceLength x microBatchSize x ranks / sequenceParallel of stage {stage!r}, "
        f"such as {near}"
    )


def _experts_fit(experts: object, spec: ArcticTrainingSpec) -> bool:
    return not isinstance(experts, int) or experts % spec.parallelism.expert_parallel == 0


def _heads_fit(heads: object, spec: ArcticTrainingSpec) -> bool:
    return not isinstance(heads, int) or heads % spec.parallelism.sequence_parallel == 0


def _uneven_for_fp8(spec: ArcticTrainingSpec) -> list[str]:
    """Return the sizes in `model.config` of matrices that FP8 does not take."""
    config = spec.model.config or {}
    hidden, heads, pairs = (config.get(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    sizes = {key: config.get(key) for key in ("hidden_size", "intermediate_size")}
    if isinstance(hidden, int) and isinstance(heads, int) and isinstance(pairs, int) and heads > 0:
        sizes["num_key_value_heads x hidden_size / num_attention_heads"] = hidden // heads * pairs
    return [f"{what} is {size}" for what, size in sizes.items() if isinstance(size, int) and size % FP8_MULTIPLE]


def _long_stages(spec: ArcticTrainingSpec) -> list[str]:
    """Return what is wrong with the stages whose sequences have more tokens than the model has positions."""
    model = spec.model
    own = PRESET_POSITIONS[model.preset] if model.preset else (model.config or {}).get("max_position_embeddings")
    if not isinstance(own, int):
        return []
    limit = int(own * (model.rope_scaling.factor if model.rope_scaling else 1))
    return [
        f"stage {stage.name!r} has a sequenceLength of {stage.sequence_length}, and the model {limit} positions: "
        f"write at most {limit}, or a model.ropeScaling that stretches them"
        for stage in spec.curriculum.stages
        if stage.sequence_length > limit
    ]


def _world_bytes(training: ArcticTraining) -> int:
    """Return how long the specification gets in the document of a world: without what is said of its pods."""
    spec = training.spec.model_dump(mode="json", by_alias=True, exclude={"template", "resources"})
    return len(json.dumps(spec, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass"))


_WHOLE_ROUNDS = (
    "self.curriculum.stages.all(stage, "
    f"(has(stage.tokensPerStep) ? {cel_tokens('stage.tokensPerStep')} : {cel_tokens('asked')})"
    " * degrees.sequenceParallel % (stage.sequenceLength * rows) == 0)"
)

COMMON_RULES = (
    Rule(
        Manifest,
        f"self.metadata.name.matches('{NAME_PATTERN}') && size(self.metadata.name) <= {MAX_OBJECT_NAME}",
        lambda node: (
            bool(re.fullmatch(NAME_PATTERN, node.metadata.name)) and len(node.metadata.name) <= MAX_OBJECT_NAME
        ),
        "write a name of lower-case letters, digits and '-' that begins with a letter and does not end with '-', "
        f"at most {MAX_OBJECT_NAME} characters",
    ),
    Rule(
        Metadata,
        Judge.API_SERVER,
        lambda node: not node.namespace or bool(DNS_LABEL.fullmatch(node.namespace)),
        "write the name of a namespace: lower-case letters, digits and '-', at most 63 characters",
        ".namespace",
    ),
    _qualified_names(Metadata, "labels", Judge.API_SERVER),
    _qualified_names(Metadata, "annotations", Judge.API_SERVER),
    _qualified_names(WorkerTemplate, "labels", Judge.OPERATOR),
    _qualified_names(WorkerTemplate, "annotations", Judge.OPERATOR),
    _qualified_names(WorkerTemplate, "nodeSelector", Judge.OPERATOR),
    _qualified_names(Resources, "requests", Judge.OPERATOR),
    _qualified_names(Resources, "limits", Judge.OPERATOR),
    _whole_devices("requests"),
    _whole_devices("limits"),
    _without_prefix(WorkerTemplate, "labels"),
    _without_prefix(WorkerTemplate, "annotations"),
    Rule(
        KeyValue,
        f"!self.name.startsWith('{RESERVED_VARIABLES}')",
        lambda node: not node.name.startswith(RESERVED_VARIABLES),
        f"variables that begin with {RESERVED_VARIABLES} are the operator's: write another one",
        ".name",
    ),
    Rule(
        ClaimVolume,
        f"!{list(RESERVED_FOLDERS)}.exists(folder, (self.mountPath + '/').startsWith(folder + '/'))",
        lambda node: not any((node.mount_path + "/").startswith(folder + "/") for folder in RESERVED_FOLDERS),
        f"{', '.join(RESERVED_FOLDERS)} are the operator's: write another folder",
        ".mountPath",
    ),
)

TRAINING_RULES = (
    Rule(
        ArcticTraining,
        Judge.OPERATOR,
        lambda training: _world_bytes(training) <= MAX_WORLD_BYTES,
        f"the specification is too long: write at most {MAX_WORLD_BYTES} bytes as JSON",
        ".spec",
        detail=lambda training: (
            f"the specification is too long: {_world_bytes(training)} bytes of at most {MAX_WORLD_BYTES} as JSON, "
            "without template and resources: shorten it"
        ),
    ),
    _exactly_one(TrainingModel, "preset", "config", "from"),
    _exactly_one(WeightsFrom, "uri", "training"),
    _needs_from("upcycle", "only a model that has been trained can grow experts: write model.from"),
    _needs_from("adapter", "an adapter is added to weights that are there: write model.from"),
    Rule(
        TrainingModel,
        "!(has(self.adapter) && has(self.upcycle))",
        lambda node: node.adapter is None or node.upcycle is None,
        "an adapter would leave new experts untrained: write one of adapter and upcycle",
        ".adapter",
    ),
    Rule(
        ArcticTrainingSpec,
        "self.checkpoint.export != 'adapter' || has(self.model.adapter)",
        lambda spec: spec.checkpoint.export != "adapter" or spec.model.adapter is not None,
        "no adapter is trained: write huggingface or none, or model.adapter",
        ".checkpoint.export",
    ),
    Rule(
        TrainingModel,
        "!has(self.ropeScaling) || self.ropeScaling.type != 'dynamic'",
        lambda node: node.rope_scaling is None or node.rope_scaling.type != "dynamic",
        "dynamic scaling turns a document by the longest one beside it: write type linear or yarn",
        ".ropeScaling.type",
    ),
    Rule(
        TrainingModel,
        Judge.OPERATOR,
        lambda node: node.rope_scaling is None or not (node.config or {}).get("rope_scaling"),
        "config has a rope_scaling of its own, and positions are stretched once: leave one of them out",
        ".ropeScaling",
    ),
    Rule(
        ArcticTrainingSpec,
        "self.checkpoint.export != 'adapter' || !has(self.model.ropeScaling)",
        lambda spec: spec.checkpoint.export != "adapter" or spec.model.rope_scaling is None,
        "an adapter's files can't say that positions are stretched: write huggingface, or leave model.ropeScaling out",
        ".checkpoint.export",
    ),
    Rule(
        Upcycle,
        "self.topK <= self.experts",
        lambda node: node.top_k <= node.experts,
        "topK is more than experts: a token cannot have more experts than there are",
        ".topK",
    ),
    Rule(
        Evaluation,
        "self.suites.all(suite, suite == 'perplexity' || has(self.data) && self.data.exists(one, one.name == suite))",
        lambda evaluation: set(evaluation.suites) <= OWN_SUITES | {one.name for one in evaluation.data or ()},
        "a suite other than perplexity takes data: write where they are in data",
        ".suites",
    ),
    Rule(
        Evaluation,
        "!has(self.data) || self.data.all(one, one.name != 'perplexity' && one.name in self.suites)",
        lambda evaluation: {one.name for one in evaluation.data or ()} <= set(evaluation.suites) - OWN_SUITES,
        "data are of suites that are asked for, and perplexity is of held-out text: leave the others out",
        ".data",
    ),
    Rule(
        Evaluation,
        "self.atStageEnd || !has(self.data)",
        lambda evaluation: evaluation.at_stage_end or evaluation.data is None,
        "suites other than perplexity are run at stages' ends: write true, or leave them and their data out",
        ".atStageEnd",
    ),
    Rule(
        ArcticTrainingSpec,
        "!has(self.evaluation) || !has(self.evaluation.data) || !has(self.model.adapter) || "
        "self.checkpoint.export == 'huggingface'",
        lambda spec: (
            spec.evaluation is None
            or spec.evaluation.data is None
            or spec.model.adapter is None
            or spec.checkpoint.export == "huggingface"
        ),
        "an adapter is evaluated from its export: write huggingface",
        ".checkpoint.export",
    ),
    _exactly_one(Tokenizer, "train", "uri"),
    _exactly_one(Validation, "fraction", "sources"),
    _exactly_one(Every, "steps", "interval"),
    _exactly_one(Checkpoint, "volume", "uri"),
    Rule(
        ArcticTrainingSpec,
        "has(self.tokenizer) || has(self.model.from)",
        lambda spec: spec.tokenizer is not None or spec.model.from_ is not None,
        "write a tokenizer: only model.from brings one with it",
    ),
    Rule(
        ArcticTrainingSpec,
        _let(
            "sources",
            "self.data.sources",
            "self.curriculum.stages.all(stage, stage.mixture.all(name, sources.exists(source, source.name == name)))",
        ),
        lambda spec: not _missing_sources(spec),
        "a mixture draws from a source that is not in data.sources: write names of sources",
        ".curriculum.stages",
        detail=_name_missing_sources,
    ),
    Rule(
        ArcticTrainingSpec,
        _let(
            "degrees",
            "self.parallelism",
            _let(
                "rows",
                "self.batch.microBatchSize * degrees.nodes * degrees.processesPerNode",
                _let("asked", "self.batch.tokensPerStep", _WHOLE_ROUNDS),
            ),
        ),
        lambda spec: not _uneven_stages(spec),
        "write a multiple of sequenceLength x microBatchSize x ranks / sequenceParallel for every stage",
        ".batch.tokensPerStep",
        detail=_suggest_step,
    ),
    Rule(
        ArcticTrainingSpec,
        _let(
            "model",
            "self.model",
            "!has(model.preset) || "
            + _let(
                "positions",
                f"double({PRESET_POSITIONS}[model.preset]) * (has(model.ropeScaling) ? model.ropeScaling.factor : 1.0)",
                "self.curriculum.stages.all(stage, double(stage.sequenceLength) <= positions)",
            ),
        ),
        lambda spec: spec.model.preset is None or not _long_stages(spec),
        "write a sequenceLength of at most the preset's positions, times the factor of model.ropeScaling: "
        + ", ".join(f"{positions} of {preset}" for preset, positions in PRESET_POSITIONS.items()),
        ".curriculum.stages",
        detail=lambda spec: "; ".join(_long_stages(spec)),
    ),
    Rule(
        ArcticTrainingSpec,
        Judge.OPERATOR,
        lambda spec: spec.model.config is None or not _long_stages(spec),
        "write a sequenceLength of at most max_position_embeddings in model.config, times model.ropeScaling's factor",
        ".curriculum.stages",
        detail=lambda spec: "; ".join(_long_stages(spec)),
    ),
    Rule(
        ArcticTrainingSpec,
        _of_preset(f"{PRESET_EXPERTS}[preset] % self.parallelism.expertParallel == 0"),
        lambda spec: _experts_fit(PRESET_EXPERTS.get(spec.model.preset), spec),
        "write a divisor of the preset's experts: "
        + ", ".join(f"{experts} of {preset}" for preset, experts in PRESET_EXPERTS.items()),
        ".parallelism.expertParallel",
    ),
    Rule(
        ArcticTrainingSpec,
        Judge.OPERATOR,
        lambda spec: _experts_fit((spec.model.config or {}).get("num_local_experts"), spec),
        "write a divisor of num_local_experts in model.config",
        ".parallelism.expertParallel",
    ),
    Rule(
        ArcticTrainingSpec,
        _let(
            "degree",
            "self.parallelism.sequenceParallel",
            "degree == 1 || self.curriculum.stages.all(stage, stage.sequenceLength % degree == 0)",
        ),
        lambda spec: all(
            stage.sequence_length % spec.parallelism.sequence_parallel == 0 for stage in spec.curriculum.stages
        ),
        "each rank has an equal part of a sequence: write a divisor of every stage's sequenceLength",
        ".parallelism.sequenceParallel",
    ),
    Rule(
        ArcticTrainingSpec,
        _of_preset(f"{PRESET_KEY_VALUE_HEADS}[preset] % self.parallelism.sequenceParallel == 0"),
        lambda spec: _heads_fit(PRESET_KEY_VALUE_HEADS.get(spec.model.preset), spec),
        "around attention ranks share out heads: write a divisor of the preset's key-value heads: "
        + ", ".join(f"{heads} of {preset}" for preset, heads in PRESET_KEY_VALUE_HEADS.items()),
        ".parallelism.sequenceParallel",
    ),
    Rule(
        ArcticTrainingSpec,
        Judge.OPERATOR,
        lambda spec: _heads_fit((spec.model.config or {}).get("num_key_value_heads"), spec),
        "around attention ranks share out heads: write a divisor of num_key_value_heads in model.config",
        ".parallelism.sequenceParallel",
    ),
    Rule(
        ArcticTrainingSpec,
        "self.precision != 'fp8' || !has(self.model.adapter)",
        lambda spec: spec.precision != "fp8" or spec.model.adapter is None,
        "an adapter is trained upon weights as they are, not rounded: write bf16",
        ".precision",
    ),
    Rule(
        ArcticTrainingSpec,
        Judge.OPERATOR,
        lambda spec: spec.precision != "fp8" or not _uneven_for_fp8(spec),
        f"FP8 multiplies matrices whose sides are multiples of {FP8_MULTIPLE}: write bf16, or such sizes in "
        "model.config",
        ".precision",
        detail=lambda spec: (
            f"{', '.join(_uneven_for_fp8(spec))}, and FP8 multiplies matrices whose sides are multiples of "
            f"{FP8_MULTIPLE}: write bf16, or such sizes in model.config"
        ),
    ),
    Rule(
        TrainingModel,
        Judge.OPERATOR,
        lambda model: not (model.config or {}).get("tie_word_embeddings"),
        "tie_word_embeddings is true, and an Arctic's output matrix is its own: write false, or leave it out",
        ".config",
    ),
    Rule(
        ArcticTrainingSpec,
        "!has(self.stopAfter) || self.curriculum.stages.exists(stage, stage.name == self.stopAfter)",
        lambda spec: spec.stop_after is None or spec.stop_after in [stage.name for stage in spec.curriculum.stages],
        "there is no such stage: write the name of one of curriculum.stages",
        ".stopAfter",
        detail=lambda spec: (
            f"there is no stage {spec.stop_after!r}: write one of "
            + ", ".join(stage.name for stage in spec.curriculum.stages)
        ),
    ),
    Rule(
        ArcticTrainingSpec,
        Judge.OPERATOR,
        _simulates_more,
        "the run that is simulated has fewer tokens than this one: write at least the stages' tokens together",
        ".data.simulatedTokens",
    ),
    _unchanged(TrainingModel, "model", "self == oldSelf", operator.eq),
    _unchanged(Tokenizer, "tokenizer", "self == oldSelf", operator.eq),
    _unchanged(
        ArcticTrainingSpec,
        "tokenizer",
        "has(self.tokenizer) == has(oldSelf.tokenizer)",
        lambda new, old: (new.tokenizer is None) == (old.tokenizer is None),
        ".tokenizer",
    ),
    _unchanged(ArcticTrainingSpec, "seed", "self.seed == oldSelf.seed", lambda new, old: new.seed == old.seed, ".seed"),
    Rule(
        Batch,
        _cel_some_tokens("self.tokensPerStep"),
        lambda batch: parse_tokens(batch.tokens_per_step) > 0,
        "write at least one token",
        ".tokensPerStep",
    ),
    Rule(
        Stage,
        _cel_some_tokens("self.tokens"),
        lambda stage: parse_tokens(stage.tokens) > 0,
        "write at least one token",
        ".tokens",
    ),
    Rule(
        Stage,
        _let(
            "warmup",
            "self.learningRate.warmupTokens",
            _let("tokens", "self.tokens", f"{cel_tokens('warmup')} <= {cel_tokens('tokens')}"),
        ),
        lambda stage: parse_tokens(stage.learning_rate.warmup_tokens) <= parse_tokens(stage.tokens),
        "the warm-up is longer than the stage: write at most its tokens",
        ".learningRate.warmupTokens",
    ),
    Rule(
        Stage,
        "self.mixture.exists(name, self.mixture[name] > 0.0)",
        lambda stage: any(weight > 0 for weight in stage.mixture.values()),
        "write at least one weight above 0",
        ".mixture",
    ),
    Rule(
        Stage,
        f"!has(self.tokensPerStep) || {_cel_some_tokens('self.tokensPerStep')}",
        lambda stage: stage.tokens_per_step is None or parse_tokens(stage.tokens_per_step) > 0,
        "write at least one token",
        ".tokensPerStep",
    ),
    Rule(
        Stage,
        "!has(self.finalMixture) || self.finalMixture.all(name, name in self.mixture)",
        lambda stage: set(stage.final_mixture or ()) <= set(stage.mixture),
        "write sources of the stage's mixture: one that is to come in later has the weight 0 there",
        ".finalMixture",
    ),
    Rule(
        Stage,
        "!has(self.finalMixture) || self.finalMixture.exists(name, self.finalMixture[name] > 0.0)",
        lambda stage: stage.final_mixture is None or any(weight > 0 for weight in stage.final_mixture.values()),
        "write at least one weight above 0",
        ".finalMixture",
    ),
    Rule(
        LearningRate,
        "self.final <= self.peak",
        lambda rate: rate.final <= rate.peak,
        "the final rate is above the peak: write at most the peak",
        ".final",
    ),
    Rule(
        LearningRate,
        "self.schedule != 'constant' || self.final == 0.0 || self.final == self.peak",
        lambda rate: rate.schedule != "constant" or rate.final in (0, rate.peak),
        "a constant rate ends at its peak: leave final out, or write another schedule",
        ".final",
    ),
    Rule(
        Source,
        "!has(self.field) || self.format != 'text'",
        lambda source: source.field is None or source.format != "text",
        "files of text have no fields: leave it out, or write another format",
        ".field",
    ),
    Rule(
        Source,
        "self.content != 'messages' || self.format != 'text'",
        lambda source: source.content != "messages" or source.format != "text",
        "files of text have no messages: write format jsonl, parquet or hf",
        ".format",
    ),
    Rule(
        Source,
        "!has(self.split) || self.format == 'hf'",
        lambda source: source.split is None or source.format == "hf",
        "only what datasets saved has splits: leave it out, or write format: hf",
        ".split",
    ),
    Rule(
        TrainingParallelism,
        "self.nodes * self.processesPerNode % self.expertParallel == 0",
        lambda degrees: degrees.nodes * degrees.processes_per_node % degrees.expert_parallel == 0,
        "write a divisor of nodes x processesPerNode",
        ".expertParallel",
    ),
    Rule(
        TrainingParallelism,
        "self.nodes * self.processesPerNode % self.sequenceParallel == 0",
        lambda degrees: degrees.nodes * degrees.processes_per_node % degrees.sequence_parallel == 0,
        "write a divisor of nodes x processesPerNode",
        ".sequenceParallel",
    ),
    Rule(
        Every,
        "!has(self.interval) || duration(self.interval) >= duration('1s')",
        lambda every: every.interval is None or parse_duration(every.interval) >= 1,
        "write at least 1s",
        ".interval",
    ),
    Rule(
        Checkpoint,
        "!has(oldSelf.volume) || has(self.volume) && self.volume == oldSelf.volume",
        lambda new, old: old.volume is None or new.volume == old.volume,
        "volume can't change, as checkpoints are in it: make another object",
        ".volume",
        transition=True,
    ),
    Rule(
        Backoff,
        "duration(self.initial) <= duration(self.max)",
        lambda backoff: parse_duration(backoff.initial) <= parse_duration(backoff.max),
        "the first wait is above the longest: write at least initial",
        ".max",
    ),
)

INFERENCE_RULES = (
    Rule(
        ArcticInference,
        "!has(self.spec.model.adapters) || !self.spec.model.adapters.exists(adapter, adapter.name == "
        "(has(self.spec.model.servedName) ? self.spec.model.servedName : self.metadata.name))",
        lambda served: all(
            adapter.name != (served.spec.model.served_name or served.metadata.name)
            for adapter in served.spec.model.adapters or []
        ),
        "an adapter has the model's own name: write another one",
        ".spec.model.adapters",
    ),
    _exactly_one(InferenceModel, "training", "uri", "inImage"),
    Rule(
        AutoscalingTarget,
        "has(self.queuedPerReplica) || has(self.kvCacheUtilization) || has(self.ttft)",
        lambda target: target != AutoscalingTarget(),
        "write at least one of queuedPerReplica, kvCacheUtilization and ttft",
    ),
    Rule(
        AutoscalingTarget,
        "!has(self.ttft) || duration(self.ttft) > duration('0s')",
        lambda target: target.ttft is None or parse_duration(target.ttft) > 0,
        "no answer comes in no time: write a duration such as 500ms",
        ".ttft",
    ),
    Rule(
        AutoscalingTarget,
        "!has(self.kvCacheUtilization) || self.kvCacheUtilization != '0%'",
        lambda target: target.kv_cache_utilization != "0%",
        "0% holds of no service that is asked: write a percentage such as 80%",
        ".kvCacheUtilization",
    ),
    Rule(
        Autoscaling,
        "self.min <= self.max",
        lambda scaling: scaling.min <= scaling.max,
        "min is above max: write at most max",
        ".min",
    ),
    Rule(
        Autoscaling,
        "!has(self.scaleToZeroAfter) || self.min == 0",
        lambda scaling: scaling.scale_to_zero_after is None or scaling.min == 0,
        "scaling to zero needs min 0: write min: 0, or leave scaleToZeroAfter out",
        ".scaleToZeroAfter",
    ),
    Rule(
        Autoscaling,
        "self.min > 0 || has(self.scaleToZeroAfter)",
        lambda scaling: scaling.min > 0 or scaling.scale_to_zero_after is not None,
        "min is 0, and nothing says when the last group goes: write scaleToZeroAfter, or min: 1",
        ".min",
    ),
    Rule(
        Autoscaling,
        "!has(self.scaleToZeroAfter) || duration(self.scaleToZeroAfter) >= duration('30s')",
        lambda scaling: scaling.scale_to_zero_after is None or parse_duration(scaling.scale_to_zero_after) >= 30,
        "write at least 30s, which noticing a request and emptying a group take",
        ".scaleToZeroAfter",
    ),
    Rule(
        Attention,
        "!has(self.window) || self.sinks < self.window",
        lambda attention: attention.window is None or attention.sinks < attention.window,
        "the sinks fill the window: write fewer sinks or a larger window",
        ".sinks",
    ),
    Rule(
        Attention,
        "self.sinks == 0 || has(self.window)",
        lambda attention: attention.sinks == 0 or attention.window is not None,
        "sinks mean something only beside a window: write a window, or leave sinks out",
        ".sinks",
    ),
    Rule(
        Rollout,
        "self.maxSurge > 0 || self.maxUnavailable > 0",
        lambda rollout: rollout.max_surge > 0 or rollout.max_unavailable > 0,
        "with both at 0 no revision can ever take over: write maxSurge: 1",
        ".maxSurge",
    ),
    Rule(
        Rollout,
        "!has(self.canary) || self.maxSurge > 0",
        lambda rollout: rollout.canary is None or rollout.max_surge > 0,
        "a canary needs a group above replicas: write maxSurge: 1",
        ".maxSurge",
    ),
    Rule(
        Canary,
        "!has(self.analysis) || !(self.weight in ['0%', '100%'])",
        lambda canary: canary.analysis is None or canary.weight not in ("0%", "100%"),
        "with no requests on one side nothing can be compared: write a weight from 1% to 99%, or leave analysis out",
        ".weight",
    ),
    Rule(
        CanaryAnalysis,
        "duration(self.duration) >= duration('1m')",
        lambda analysis: parse_duration(analysis.duration) >= 60,
        "write at least 1m",
        ".duration",
    ),
    Rule(
        ArcticInferenceSpec,
        "self.engine.name != 'nim' || !has(self.rollout.canary) || !has(self.rollout.canary.analysis)",
        lambda spec: spec.engine.name != "nim" or not spec.rollout.canary or not spec.rollout.canary.analysis,
        "NVIDIA's container does not count what an analysis compares: leave analysis out, and decide yourself",
        ".rollout.canary.analysis",
    ),
)


def _unset(where: type[Resource], field: str) -> Rule:
    attribute = _attribute(where, field)
    return Rule(
        where,
        f"!has(self.{field})",
        lambda node: getattr(node, attribute) is None,
        f"{field} is not yet supported: leave it out",
        f".{field}",
    )


def _only(where: type[Resource], field: str, *values: str | int | bool) -> Rule:
    attribute = _attribute(where, field)
    one_of = " or ".join(_literal(value).strip("'") for value in values)
    return Rule(
        where,
        f"self.{field} in [{', '.join(map(_literal, values))}]",
        lambda node: getattr(node, attribute) in values,
        f"{field} other than {one_of} is not yet supported: write {one_of}",
        f".{field}",
    )


def _literal(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _only_files(where: type[Resource], *, optional: bool) -> Rule:
    return Rule(
        where,
        ("!has(self.uri) || " if optional else "") + "self.uri.startsWith('file:///')",
        lambda node: node.uri is None or node.uri.startswith("file:///"),
        "a uri other than file:///... is not yet supported: write file:/// and an absolute path",
        ".uri",
    )


# One line for each thing that the types already name and nothing does yet. Refused, never ignored: who makes it work
# deletes its line.
NOT_YET_SUPPORTED = (
    _only_files(WeightsFrom, optional=True),
    _only_files(Tokenizer, optional=True),
    _only_files(Source, optional=False),
    _only_files(EvaluatedModel, optional=True),
    _only_files(SuiteData, optional=False),
    _unset(Source, "credentials"),
    _unset(Checkpoint, "uri"),
    _unset(Checkpoint, "credentials"),
    _only_files(InferenceModel, optional=True),
    _only_files(ServedAdapter, optional=False),
    _unset(InferenceModel, "credentials"),
)

RULES = (
    *(*COMMON_RULES, *TRAINING_RULES, *INFERENCE_RULES, *ENGINE_RULES),
    *(*ABLATION_RULES, *EVALUATION_RULES, *NOT_YET_SUPPORTED),
)


def rules_of(where: type[Resource]) -> tuple[Rule, ...]:
    """Return the rules about objects of a type."""
    return _rules_of(where)


@cache
def _rules_of(where: type[Resource]) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if issubclass(where, rule.where))
