"""For each rule of the resources a manifest that keeps it and one that breaks it, one change apart."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from arctic_api import API_VERSION
from arctic_api.ablation import ArcticAblation, ArcticAblationSpec, Objective
from arctic_api.common import ClaimVolume, KeyValue, Manifest, Metadata, Resource, Resources, WorkerTemplate
from arctic_api.engine_rules import ENGINE_RULES
from arctic_api.evaluation import ArcticEvaluationSpec, EvaluatedModel
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
from arctic_api.rule import Rule
from arctic_api.rules import RULES
from arctic_api.training import (
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

ADAPTER = {"name": "clerk", "uri": "file:///clerk"}
LORA = {"lora": {"rank": 8, "alpha": 16}}

ABSENT = object()
"""Stands for a field that a change removes."""

Changes = dict[str, Any]

TRAINING: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "ArcticTraining",
    "metadata": {"name": "tiny"},
    "spec": {
        "model": {"preset": "arctic-tiny"},
        "tokenizer": {"train": {}},
        "data": {"sources": [{"name": "books", "category": "general", "uri": "file:///data"}]},
        "curriculum": {
            "stages": [
                {
                    "name": "general",
                    "tokens": "1M",
                    "mixture": {"books": 1},
                    "learningRate": {"peak": 3e-4},
                    "sequenceLength": 128,
                }
            ]
        },
        "batch": {"tokensPerStep": 4096},
        "parallelism": {"nodes": 2},
        "checkpoint": {"volume": {"claimName": "store"}},
    },
}
ABLATION: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "ArcticAblation",
    "metadata": {"name": "rates"},
    "spec": {
        "training": TRAINING["spec"],
        "grid": [{"field": "curriculum.stages.general.learningRate.peak", "values": [1e-3, 3e-3]}],
        "objective": {"perplexity": {"sql": 1}},
    },
}
EVALUATION: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "ArcticEvaluation",
    "metadata": {"name": "judged"},
    "spec": {
        "model": {"training": "tiny"},
        "suites": [{"name": "gsm8k", "uri": "file:///suites/test.jsonl"}],
        "results": {"claimName": "store"},
    },
}
INFERENCE: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "ArcticInference",
    "metadata": {"name": "tiny"},
    "spec": {"model": {"training": "tiny"}},
}

STAGE = "spec.curriculum.stages.0"
IFEVAL = [{"name": "ifeval", "uri": "file:///suites/input_data.jsonl"}]
BESIDE: Changes = {
    "spec.model": {"from": {"training": "base"}, "adapter": LORA},
    "spec.evaluation": {"suites": ["ifeval"], "data": IFEVAL},
}
PROOFS = {"name": "proofs", "category": "math", "uri": "file:///proofs"}
SWARM: Changes = {
    "spec.grid": ABSENT,
    "spec.mixture": {},
    "spec.training.data.sources": [*TRAINING["spec"]["data"]["sources"], PROOFS],
}
BY_SUITES: Changes = {
    "spec.objective": {"suites": {"ifeval": 1}},
    "spec.training.evaluation": {"suites": ["ifeval"], "data": [{"name": "ifeval", "uri": "file:///ifeval"}]},
}
SCALING = {"max": 4, "target": {"queuedPerReplica": 4}}
SECRET = {"secretName": "keys"}
LONG = [{"name": f"LONG_{number}", "value": "x" * 32768} for number in range(4)]
STRETCHED = {"type": "yarn", "factor": 2}


@dataclass(frozen=True)
class Case:
    """A rule, a manifest that keeps it and one that breaks it; for a transition both replace `old`."""

    rule: Rule
    good: dict[str, Any]
    bad: dict[str, Any]
    old: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Tells the case from the others."""
        return f"{self.rule.where.__name__}{self.rule.field_path}: {self.rule.message}"[:80]


def apply_changes(manifest: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """Return a manifest with other values at some places, as in `spec.data.sources.0.uri`."""
    manifest = copy.deepcopy(manifest)
    for place, value in changes.items():
        *parents, last = place.split(".")
        node: Any = manifest
        for step in parents:
            node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
        if value is ABSENT:
            node.pop(last, None)
        else:
            node[int(last) if isinstance(node, list) else last] = copy.deepcopy(value)
    return manifest


def find_rule(where: type[Resource], field_path: str, words: str) -> Rule:
    """Return the one rule of a type about a field whose message has the words."""
    (rule,) = (
        rule for rule in RULES if rule.where is where and rule.field_path == field_path and words in rule.message
    )
    return rule


def _case(
    base: dict[str, Any],
    where: type[Resource],
    field_path: str,
    words: str,
    bad: Changes,
    good: Changes | None = None,
    old: dict[str, Any] | None = None,
) -> Case:
    rule = find_rule(where, field_path, words)
    return Case(rule, apply_changes(base, good or {}), apply_changes(base, bad), old)


def _training(where: type[Resource], field: str, words: str, bad: Changes, good: Changes | None = None) -> Case:
    return _case(TRAINING, where, field, words, bad, good)


def _inference(where: type[Resource], field: str, words: str, bad: Changes, good: Changes | None = None) -> Case:
    return _case(INFERENCE, where, field, words, bad, good)


def _ablation(where: type[Resource], field: str, words: str, bad: Changes, good: Changes | None = None) -> Case:
    return _case(ABLATION, where, field, words, bad, good)


def _evaluation(where: type[Resource], field: str, words: str, bad: Changes, good: Changes | None = None) -> Case:
    return _case(EVALUATION, where, field, words, bad, good)


def _update(where: type[Resource], field: str, old: Changes, bad: Changes) -> Case:
    before = apply_changes(TRAINING, old)
    return _case(before, where, field, "can't change", bad, {"spec.suspend": True}, before)


ENGINES: dict[str, Changes] = {
    "native": {},
    "vllm": {"spec.engine.name": "vllm"},
    "tensorrt-llm": {"spec.engine.name": "tensorrt-llm"},
    "nim": {
        "spec.engine": {"name": "nim", "image": "nim:1"},
        "spec.model": {"inImage": True},
    },
}
"""What a manifest says to run on each engine."""
WINDOW: Changes = {"spec.attention.window": 4096}
BEYOND: dict[str, dict[str, Changes]] = {
    ".quantization.weights": {"nim": {"spec.quantization.weights": "bf16"}, "": {"spec.quantization.weights": "fp32"}},
    ".quantization.kvCache": {
        "native": {"spec.quantization.kvCache": "fp8"},
        "": {"spec.quantization.kvCache": "fp32"},
    },
    ".quantization": {"": {"spec.quantization.kvCache": "fp32"}},
    ".parallelism.pipeline": {"": {"spec.parallelism.pipeline": 2}},
    ".attention.window": {"": WINDOW},
    ".attention.sinks": {"": WINDOW | {"spec.attention.sinks": 4}},
    ".attention.maxLength": {"": {"spec.attention.maxLength": "unlimited"}},
    ".attention.ropeScaling": {
        "native": {"spec.attention.ropeScaling": STRETCHED | {"type": "dynamic"}},
        "": {"spec.attention.ropeScaling": STRETCHED},
    },
    ".batching.prefixCaching": {"": {"spec.batching.prefixCaching": "perKey"}},
    ".batching.targetInterTokenLatency": {"": {"spec.batching.targetInterTokenLatency": "50ms"}},
    ".batching.suffixDecoding": {"": {"spec.batching.suffixDecoding": True}},
    ".model.adapters": {"": {"spec.model.adapters": [ADAPTER]}},
    ".model.inImage": {"nim": {"spec.model": {"uri": "file:///b"}}, "": {"spec.model": {"inImage": True}}},
    ".service.cors": {"": {"spec.service.cors": ["https://chat.example.com"]}},
    ".engine.image": {"": {"spec.engine.image": ABSENT}},
    ".engine.credentials": {"": {"spec.engine.credentials": SECRET}},
    ".engine.cacheClaim": {"": {"spec.engine.cacheClaim": "cache"}},
}
"""What breaks the rule about a field, for one engine or for all (the empty name)."""
OPTIONS: dict[str, Any] = {
    "enforce_eager": True,
    "optimization_level": 1,
    "performance_mode": "throughput",
    "block_size": 16,
    "kv_cache_memory_bytes": 1 << 33,
    "cpu_offload_gb": 1.5,
    "enable_expert_parallel": True,
    "moe_backend": "triton",
    "attention_backend": "FLASH_ATTN",
    "disable_custom_all_reduce": True,
    "async_scheduling": False,
    "long_prefill_token_threshold": 512,
    "safetensors_load_strategy": "prefetch",
    "numa_bind": True,
    "pipeline_format": "bf16",
    "large_step_format": "fp8",
    "row_format": "bf16",
    "moe_expert_parallel_size": 2,
    "moe_config": {"backend": "DEEPGEMM"},
    "cuda_graph_config": {"max_batch_size": 8},
    "kv_cache_config": {"tokens_per_block": 64},
    "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
    "attn_backend": "FLASHINFER",
    "allreduce_strategy": "NCCL",
    "disable_overlap_scheduler": True,
    "batch_wait_timeout_ms": 5,
}
"""A right value of each option of an engine."""


def _engine_cases() -> Iterator[Case]:
    for rule in ENGINE_RULES:
        engine = next(name for name in ENGINES if f"engine {name}:" in rule.message)
        beyond = BEYOND.get(rule.field_path, {})
        option = rule.field_path.rpartition(".")[2]
        bad = beyond.get(engine, beyond.get("")) or {f"spec.engine.options.{option}": OPTIONS[option]}
        yield Case(rule, apply_changes(INFERENCE, ENGINES[engine]), apply_changes(INFERENCE, ENGINES[engine] | bad))


NO = "not yet supported"

CASES = [
    _inference(Manifest, "", "write a name", {"metadata.name": "3g"}, {"metadata.name": "a" * 40}),
    _inference(Manifest, "", "write a name", {"metadata.name": "a" * 41}, {"metadata.name": "a"}),
    _inference(Manifest, "", "write a name", {"metadata.name": "a.b"}, {"metadata.name": "a-b"}),
    *(
        _inference(Metadata, ".namespace", "", {"metadata.namespace": bad}, {"metadata.namespace": good})
        for bad, good in [("../../escaped", "default"), ("a.b", ""), ("Bad", None), ("a" * 64, "default")]
    ),
    _inference(Metadata, ".labels", "", {"metadata.labels": {"a b": "x"}}, {"metadata.labels": {"a.b/c_D": "x"}}),
    _inference(Metadata, ".annotations", "", {"metadata.annotations": {"": "x"}}, {"metadata.annotations": {"a": " "}}),
    _inference(
        Metadata,
        ".annotations",
        "",
        {"metadata.annotations": {"a b": "x"}},
        {"metadata.annotations": {"Example.com/app": "x"}},
    ),
    _inference(
        Metadata,
        ".labels",
        "",
        {"metadata.labels": {"Example.com/a": "x"}},
        {"metadata.labels": {"example.com/A": "x"}},
    ),
    _inference(
        WorkerTemplate,
        ".annotations",
        "write names such as",
        {"spec.template": {"annotations": {"a b": "x"}}},
        {"spec.template": {"annotations": {"Example.com/app": "x"}}},
    ),
    *(
        _inference(
            WorkerTemplate,
            f".{field}",
            "write names such as",
            {"spec.template": {field: {"a b": "x"}}},
            {"spec.template": {field: {"example.com/a": "x"}}},
        )
        for field in ("labels", "annotations", "nodeSelector")
    ),
    *(
        _inference(
            Resources,
            f".{field}",
            "write names such as",
            {"spec.resources": {field: {"": 1}}},
            {"spec.resources": {field: {"nvidia.com/gpu": 8}}},
        )
        for field in ("requests", "limits")
    ),
    *(
        _inference(
            Resources,
            f".{field}",
            "a whole number",
            {"spec.resources": {field: {"nvidia.com/gpu": amount}}},
            {"spec.resources": {field: {"nvidia.com/gpu": "8", "amd.com/gpu": 1, "cpu": "500m"}}},
        )
        for field in ("requests", "limits")
        for amount in ("500m", "1k", "8Gi", "0.5")
    ),
    *(
        _inference(
            WorkerTemplate,
            f".{field}",
            "under arctic.dev/",
            {"spec.template": {field: {"arctic.dev/name": "x"}}},
            {"spec.template": {field: {"arctic.dev": "x"}}},
        )
        for field in ("labels", "annotations")
    ),
    _inference(
        KeyValue,
        ".name",
        "",
        {"spec.template": {"environment": [{"name": "ARCTIC_WORLD", "value": ""}]}},
        {"spec.template": {"environment": [{"name": "HF_HOME", "value": ""}]}},
    ),
    *(
        _inference(
            ClaimVolume,
            ".mountPath",
            "",
            {"spec.template": {"volumes": [{"claimName": "a", "mountPath": bad}]}},
            {"spec.template": {"volumes": [{"claimName": "a", "mountPath": good}]}},
        )
        for bad, good in [
            ("/etc/arctic", "/etc"),
            ("/var/lib/arctic/store/a", "/var/lib/arctic/storey"),
            ("/var/lib/arctic/base", "/var/lib/arctic/corpus"),
            ("/tmp", "/tmpfs"),
            ("/home/arctic", "/home"),
            ("/dev/shm", "/data"),
        ]
    ),
    _training(
        ArcticTraining,
        ".spec",
        "too long",
        {"spec.model": {"config": {"notes": "é" * 60_000}}},
        {"spec.model": {"config": {"notes": "é" * 50_000}}, "spec.template": {"environment": LONG}},
    ),
    _training(TrainingModel, "", "exactly one", {"spec.model": {}}, {"spec.model": {"config": {}}}),
    _training(TrainingModel, "", "exactly one", {"spec.model.config": {}}, {"spec.model": {"from": {"training": "a"}}}),
    _training(
        WeightsFrom,
        "",
        "exactly one",
        {"spec.model": {"from": {}}},
        {"spec.model": {"from": {"uri": "file:///a"}}},
    ),
    _training(Tokenizer, "", "exactly one", {"spec.tokenizer": {}}, {"spec.tokenizer": {"uri": "file:///a"}}),
    _training(Validation, "", "exactly one", {"spec.data.validation": {}}, {"spec.data.validation": {"fraction": 0.5}}),
    _training(
        Every,
        "",
        "exactly one",
        {"spec.checkpoint.every": {"steps": 1, "interval": "1m"}},
        {"spec.checkpoint.every": {"steps": 1}},
    ),
    _training(Checkpoint, "", "exactly one", {"spec.checkpoint": {}}),
    _training(
        ArcticTrainingSpec,
        "",
        "write a tokenizer",
        {"spec.tokenizer": ABSENT},
        {"spec.tokenizer": ABSENT, "spec.model": {"from": {"training": "a"}}},
    ),
    _training(ArcticTrainingSpec, ".curriculum.stages", "names of sources", {f"{STAGE}.mixture.code": 1}),
    _training(
        ArcticTrainingSpec,
        ".batch.tokensPerStep",
        "",
        {"spec.batch.tokensPerStep": "4k"},
        {"spec.batch.tokensPerStep": "4.096k"},
    ),
    _training(ArcticTrainingSpec, ".batch.tokensPerStep", "", {"spec.parallelism.nodes": 3}),
    *(
        _training(
            ArcticTrainingSpec,
            ".curriculum.stages",
            "of arctic-tiny",
            {f"{STAGE}.sequenceLength": bad, "spec.model.preset": preset, "spec.batch.tokensPerStep": 8192},
            {f"{STAGE}.sequenceLength": good, "spec.model.preset": preset, "spec.batch.tokensPerStep": 8192},
        )
        for preset, bad, good in [("arctic-tiny", ABSENT, 1024), ("arctic-small", 4096, 2048)]
    ),
    _training(
        ArcticTrainingSpec,
        ".curriculum.stages",
        "max_position_embeddings",
        {f"{STAGE}.sequenceLength": 128, "spec.model": {"config": {"max_position_embeddings": 127}}},
        {f"{STAGE}.sequenceLength": 128, "spec.model": {"config": {"max_position_embeddings": 128}}},
    ),
    _training(
        ArcticTrainingSpec,
        ".parallelism.expertParallel",
        "of arctic-tiny",
        {"spec.parallelism": {"nodes": 16, "expertParallel": 16}, "spec.batch.tokensPerStep": 4096},
        {"spec.parallelism": {"nodes": 16, "expertParallel": 8}, "spec.batch.tokensPerStep": 4096},
    ),
    _training(
        ArcticTrainingSpec,
        ".parallelism.expertParallel",
        "num_local_experts",
        {"spec.model": {"config": {"num_local_experts": 3}}, "spec.parallelism.expertParallel": 2},
        {"spec.model": {"config": {"num_local_experts": 4}}, "spec.parallelism.expertParallel": 2},
    ),
    _training(
        ArcticTrainingSpec,
        ".parallelism.sequenceParallel",
        "sequenceLength",
        {f"{STAGE}.sequenceLength": 127, "spec.batch.tokensPerStep": 4064, "spec.parallelism.sequenceParallel": 2},
        {f"{STAGE}.sequenceLength": 127, "spec.batch.tokensPerStep": 4064, "spec.parallelism.sequenceParallel": 1},
    ),
    _training(
        ArcticTrainingSpec,
        ".parallelism.sequenceParallel",
        "of arctic-tiny",
        {"spec.parallelism": {"nodes": 4, "sequenceParallel": 4}},
        {"spec.parallelism": {"nodes": 4, "sequenceParallel": 2}},
    ),
    _training(
        ArcticTrainingSpec,
        ".parallelism.sequenceParallel",
        "num_key_value_heads",
        {"spec.model": {"config": {"num_key_value_heads": 3}}, "spec.parallelism.sequenceParallel": 2},
        {"spec.model": {"config": {"num_key_value_heads": 4}}, "spec.parallelism.sequenceParallel": 2},
    ),
    _training(
        ArcticTrainingSpec,
        ".precision",
        "an adapter",
        {"spec.precision": "fp8", "spec.model": {"from": {"training": "a"}, "adapter": LORA}},
        {"spec.precision": "bf16", "spec.model": {"from": {"training": "a"}, "adapter": LORA}},
    ),
    *(
        _training(
            ArcticTrainingSpec,
            ".precision",
            "multiples of 16",
            {"spec.precision": "fp8", "spec.model": {"config": bad}},
            {"spec.precision": precision, "spec.model": {"config": good}},
        )
        for precision, bad, good in [
            ("bf16", {"hidden_size": 72}, {"hidden_size": 72}),
            ("fp8", {"intermediate_size": 24}, {"intermediate_size": 48}),
            (
                "fp8",
                {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 3},
                {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 4},
            ),
        ]
    ),
    _training(
        TrainingModel,
        ".config",
        "tie_word_embeddings",
        {"spec.model": {"config": {"tie_word_embeddings": True}}},
        {"spec.model": {"config": {"tie_word_embeddings": False}}},
    ),
    _training(
        ArcticTrainingSpec, ".stopAfter", "no such stage", {"spec.stopAfter": "b"}, {"spec.stopAfter": "general"}
    ),
    _training(
        ArcticTrainingSpec, ".stopAfter", "no such stage", {"spec.stopAfter": "b"}, {"spec.stopAfter": "general"}
    ),
    _update(TrainingModel, "", {}, {"spec.model": {"preset": "arctic"}}),
    _update(
        TrainingModel,
        "",
        {"spec.model": {"config": {"hidden_size": 64}}},
        {"spec.model": {"config": {"hidden_size": 65}}},
    ),
    _update(Tokenizer, "", {}, {"spec.tokenizer": {"train": {"vocabSize": 400}}}),
    _update(
        ArcticTrainingSpec,
        ".tokenizer",
        {"spec.model": {"from": {"training": "a"}}, "spec.tokenizer": ABSENT},
        {"spec.tokenizer": {"train": {}}},
    ),
    _update(ArcticTrainingSpec, ".seed", {}, {"spec.seed": 1}),
    _update(Checkpoint, ".volume", {}, {"spec.checkpoint.volume.path": "runs"}),
    _training(Batch, ".tokensPerStep", "", {"spec.batch.tokensPerStep": 0}),
    _training(Batch, ".tokensPerStep", "", {"spec.batch.tokensPerStep": "0.000k"}),
    _training(Stage, ".tokens", "", {f"{STAGE}.tokens": 0}, {f"{STAGE}.tokens": "0.001k"}),
    _training(
        Stage,
        ".learningRate.warmupTokens",
        "",
        {f"{STAGE}.tokens": "1.5T", f"{STAGE}.learningRate.warmupTokens": "1500.001G"},
        {f"{STAGE}.tokens": "1.5T", f"{STAGE}.learningRate.warmupTokens": "1500000M"},
    ),
    _training(Stage, ".mixture", "", {f"{STAGE}.mixture.books": 0}, {f"{STAGE}.mixture.books": 1e-9}),
    _training(
        ArcticTrainingSpec,
        ".data.simulatedTokens",
        "fewer tokens",
        {"spec.data.simulatedTokens": 999_999},
        {"spec.data.simulatedTokens": "1T"},
    ),
    _training(Stage, ".tokensPerStep", "", {f"{STAGE}.tokensPerStep": 0}, {f"{STAGE}.tokensPerStep": 512}),
    _training(
        ArcticTrainingSpec,
        ".batch.tokensPerStep",
        "multiple of",
        {f"{STAGE}.tokensPerStep": 128},
        {f"{STAGE}.tokensPerStep": "0.768k"},
    ),
    _training(
        Stage,
        ".finalMixture",
        "write sources of",
        {f"{STAGE}.finalMixture": {"code": 1}},
        {f"{STAGE}.finalMixture": {"books": 2}},
    ),
    _training(
        Stage, ".finalMixture", "above 0", {f"{STAGE}.finalMixture.books": 0}, {f"{STAGE}.finalMixture.books": 1}
    ),
    _training(LearningRate, ".final", "above the peak", {f"{STAGE}.learningRate.final": 1}),
    _training(
        LearningRate,
        ".final",
        "a constant rate",
        {f"{STAGE}.learningRate": {"peak": 0.5, "final": 0.1, "schedule": "constant"}},
        {f"{STAGE}.learningRate": {"peak": 0.5, "final": 0.5, "schedule": "constant"}},
    ),
    _training(
        TrainingParallelism,
        ".expertParallel",
        "",
        {"spec.parallelism.expertParallel": 3},
        {"spec.parallelism.expertParallel": 2},
    ),
    _training(
        TrainingParallelism,
        ".sequenceParallel",
        "divisor",
        {"spec.parallelism.sequenceParallel": 3},
        {"spec.parallelism.sequenceParallel": 2},
    ),
    _training(
        Every,
        ".interval",
        "",
        {"spec.checkpoint.every": {"interval": "999ms"}},
        {"spec.checkpoint.every": {"interval": "1000ms"}},
    ),
    _training(
        Backoff,
        ".max",
        "",
        {"spec.restart": {"backoff": {"initial": "1h", "max": "59m59.999s"}}},
        {"spec.restart": {"backoff": {"initial": "1h", "max": "60m"}}},
    ),
    _inference(InferenceModel, "", "exactly one", {"spec.model.uri": "file:///a"}),
    _inference(
        AutoscalingTarget,
        "",
        "at least one",
        {"spec.autoscaling": {"max": 4, "target": {}}},
        {"spec.autoscaling": SCALING},
    ),
    _inference(
        AutoscalingTarget,
        ".ttft",
        "no time",
        {"spec.autoscaling": {"max": 4, "target": {"ttft": "0s"}}},
        {"spec.autoscaling": {"max": 4, "target": {"ttft": "1ms"}}},
    ),
    _inference(
        AutoscalingTarget,
        ".kvCacheUtilization",
        "0%",
        {"spec.autoscaling": {"max": 4, "target": {"kvCacheUtilization": "0%"}}},
        {"spec.autoscaling": {"max": 4, "target": {"kvCacheUtilization": "1%", "ttft": "1s"}}},
    ),
    _inference(
        Autoscaling,
        ".min",
        "min is above",
        {"spec.autoscaling": SCALING | {"min": 5}},
        {"spec.autoscaling": SCALING | {"min": 4}},
    ),
    _inference(
        Autoscaling,
        ".min",
        "when the last group goes",
        {"spec.autoscaling": SCALING | {"min": 0}},
        {"spec.autoscaling": SCALING | {"min": 1}},
    ),
    _inference(
        Autoscaling,
        ".scaleToZeroAfter",
        "at least 30s",
        {"spec.autoscaling": SCALING | {"scaleToZeroAfter": "29999ms", "min": 0}},
        {"spec.autoscaling": SCALING | {"scaleToZeroAfter": "30s", "min": 0}},
    ),
    _inference(
        Autoscaling,
        ".scaleToZeroAfter",
        "needs min 0",
        {"spec.autoscaling": SCALING | {"scaleToZeroAfter": "1h"}},
        {"spec.autoscaling": SCALING | {"scaleToZeroAfter": "1h", "min": 0}},
    ),
    _inference(
        Attention,
        ".sinks",
        "fill the window",
        {"spec.attention": {"window": 4, "sinks": 4}},
        {"spec.attention": {"window": 5, "sinks": 4}},
    ),
    _inference(
        Attention,
        ".sinks",
        "beside a window",
        {"spec.attention": {"sinks": 4}},
        {"spec.attention": {"window": 5, "sinks": 4}},
    ),
    _inference(
        Rollout,
        ".maxSurge",
        "take over",
        {"spec.rollout": {"maxSurge": 0}},
        {"spec.rollout": {"maxSurge": 0, "maxUnavailable": 1}},
    ),
    _training(
        TrainingModel,
        ".upcycle",
        "grow experts",
        {"spec.model.upcycle": {"experts": 2}},
        {"spec.model": {"from": {"training": "a"}, "upcycle": {"experts": 2}}},
    ),
    _training(
        Upcycle,
        ".topK",
        "than experts",
        {"spec.model": {"from": {"training": "a"}, "upcycle": {"experts": 2, "topK": 3}}},
        {"spec.model": {"from": {"training": "a"}, "upcycle": {"experts": 3, "topK": 3}}},
    ),
    _training(
        TrainingModel,
        ".adapter",
        "weights that are there",
        {"spec.model.adapter": LORA},
        {"spec.model": {"from": {"training": "a"}, "adapter": LORA}},
    ),
    _training(
        TrainingModel,
        ".adapter",
        "new experts untrained",
        {"spec.model": {"from": {"training": "a"}, "adapter": LORA, "upcycle": {"experts": 2}}},
        {"spec.model": {"from": {"training": "a"}, "adapter": LORA}},
    ),
    _training(
        ArcticTrainingSpec,
        ".checkpoint.export",
        "no adapter is trained",
        {"spec.checkpoint.export": "adapter"},
        {"spec.checkpoint.export": "adapter", "spec.model": {"from": {"training": "a"}, "adapter": LORA}},
    ),
    _training(
        TrainingModel,
        ".ropeScaling.type",
        "the longest one beside it",
        {"spec.model.ropeScaling": STRETCHED | {"type": "dynamic"}},
        {"spec.model.ropeScaling": STRETCHED},
    ),
    _training(
        TrainingModel,
        ".ropeScaling",
        "stretched once",
        {"spec.model": {"config": {"rope_scaling": STRETCHED}, "ropeScaling": STRETCHED}},
        {"spec.model": {"config": {"rope_scaling": None}, "ropeScaling": STRETCHED}},
    ),
    _training(
        ArcticTrainingSpec,
        ".checkpoint.export",
        "stretched",
        {
            "spec.checkpoint.export": "adapter",
            "spec.model": {"from": {"training": "a"}, "adapter": LORA, "ropeScaling": STRETCHED},
        },
        {"spec.checkpoint.export": "adapter", "spec.model": {"from": {"training": "a"}, "adapter": LORA}},
    ),
    _training(
        ArcticTrainingSpec,
        ".curriculum.stages",
        "of arctic-tiny",
        {f"{STAGE}.sequenceLength": 2049, "spec.batch.tokensPerStep": 4098, "spec.model.ropeScaling": STRETCHED},
        {f"{STAGE}.sequenceLength": 2048, "spec.batch.tokensPerStep": 4096, "spec.model.ropeScaling": STRETCHED},
    ),
    _training(
        WeightsFrom,
        ".uri",
        NO,
        {"spec.model": {"from": {"uri": "hf://a/b"}}},
        {"spec.model": {"from": {"uri": "file:///b"}}},
    ),
    _training(Tokenizer, ".uri", NO, {"spec.tokenizer": {"uri": "hf://a/b"}}, {"spec.tokenizer": {"uri": "file:///b"}}),
    _training(
        Source,
        ".field",
        "no fields",
        {"spec.data.sources.0.field": "content"},
        {"spec.data.sources.0.field": "content", "spec.data.sources.0.format": "jsonl"},
    ),
    _training(
        Source,
        ".format",
        "no messages",
        {"spec.data.sources.0.content": "messages"},
        {"spec.data.sources.0.content": "messages", "spec.data.sources.0.format": "jsonl"},
    ),
    _training(
        Source,
        ".split",
        "has splits",
        {"spec.data.sources.0.split": "dev", "spec.data.sources.0.format": "parquet"},
        {"spec.data.sources.0.split": "dev", "spec.data.sources.0.format": "hf"},
    ),
    _training(Source, ".uri", NO, {"spec.data.sources.0.uri": "s3://bucket/key"}),
    _training(Source, ".uri", NO, {"spec.data.sources.0.uri": "/data"}),
    _training(Source, ".credentials", NO, {"spec.data.sources.0.credentials": SECRET}),
    _training(Checkpoint, ".uri", NO, {"spec.checkpoint": {"uri": "s3://bucket/prefix"}}),
    _training(Checkpoint, ".credentials", NO, {"spec.checkpoint.credentials": SECRET}),
    _training(
        Evaluation,
        ".suites",
        "takes data",
        {"spec.evaluation": {"suites": ["perplexity", "ifeval"]}},
        {"spec.evaluation": {"suites": ["perplexity", "ifeval"], "data": IFEVAL}},
    ),
    _training(Evaluation, ".data", "asked for", {"spec.evaluation": {"suites": ["perplexity"], "data": IFEVAL}}),
    _training(
        Evaluation,
        ".data",
        "asked for",
        {"spec.evaluation": {"suites": ["perplexity"], "data": [IFEVAL[0] | {"name": "perplexity"}]}},
    ),
    _training(
        Evaluation,
        ".atStageEnd",
        "run at stages' ends",
        {"spec.evaluation": {"suites": ["ifeval"], "data": IFEVAL, "atStageEnd": False}},
        {"spec.evaluation": {"suites": ["perplexity"], "atStageEnd": False}},
    ),
    _training(
        ArcticTrainingSpec,
        ".checkpoint.export",
        "evaluated from its export",
        BESIDE | {"spec.checkpoint.export": "none"},
        BESIDE | {"spec.checkpoint.export": "huggingface"},
    ),
    _inference(InferenceModel, ".uri", NO, {"spec.model": {"uri": "hf://a/b"}}, {"spec.model": {"uri": "file:///b"}}),
    _inference(
        ServedAdapter,
        ".uri",
        NO,
        {"spec.model.adapters": [ADAPTER | {"uri": "hf://a/b"}]},
        {"spec.model.adapters": [ADAPTER]},
    ),
    _inference(
        ArcticInference,
        ".spec.model.adapters",
        "the model's own name",
        {"spec.model.adapters": [ADAPTER], "spec.model.servedName": "clerk"},
        {"spec.model.adapters": [ADAPTER], "spec.model.servedName": "base"},
    ),
    _inference(
        ArcticInference,
        ".spec.model.adapters",
        "the model's own name",
        {"spec.model.adapters": [ADAPTER], "metadata.name": "clerk"},
        {"spec.model.adapters": [ADAPTER], "metadata.name": "clerks"},
    ),
    _inference(InferenceModel, ".credentials", NO, {"spec.model.credentials": SECRET}),
    _inference(
        Rollout,
        ".maxSurge",
        "a canary needs",
        {"spec.rollout": {"maxSurge": 0, "maxUnavailable": 1, "canary": {"weight": "10%"}}},
        {"spec.rollout": {"maxSurge": 1, "canary": {"weight": "10%"}}},
    ),
    _inference(
        Canary,
        ".weight",
        "nothing can be compared",
        {"spec.rollout": {"canary": {"weight": "0%", "analysis": {}}}},
        {"spec.rollout": {"canary": {"weight": "1%", "analysis": {}}}},
    ),
    _inference(
        CanaryAnalysis,
        ".duration",
        "at least 1m",
        {"spec.rollout": {"canary": {"weight": "10%", "analysis": {"duration": "59s"}}}},
        {"spec.rollout": {"canary": {"weight": "10%", "analysis": {"duration": "1m"}}}},
    ),
    _inference(
        ArcticInferenceSpec,
        ".rollout.canary.analysis",
        "decide yourself",
        ENGINES["nim"] | {"spec.rollout": {"canary": {"weight": "10%", "analysis": {}}}},
        ENGINES["nim"] | {"spec.rollout": {"canary": {"weight": "10%"}}},
    ),
    *_engine_cases(),
    _ablation(Objective, ".perplexity", "no such category", {"spec.objective.perplexity": {"poems": 1}}),
    _ablation(
        Objective, ".suites", "no such suite", BY_SUITES | {"spec.objective": {"suites": {"poems": 1}}}, BY_SUITES
    ),
    _ablation(
        Objective, "", "exactly one of perplexity", BY_SUITES | {"spec.objective.perplexity": {"sql": 1}}, BY_SUITES
    ),
    _ablation(Objective, "", "exactly one of perplexity", {"spec.objective.perplexity": ABSENT}),
    _ablation(
        ArcticAblationSpec,
        ".objective.suites",
        "training.evaluation.data",
        BY_SUITES | {"spec.objective": {"suites": {"ifeval": 1, "spider": 1}}},
        BY_SUITES | {"spec.objective": {"suites": {"ifeval": 1}}},
    ),
    _ablation(ArcticAblation, "", "at most 31", {"metadata.name": "a" * 32}, {"metadata.name": "a" * 31}),
    _ablation(ArcticAblationSpec, "", "exactly one of grid", {"spec.mixture": {}}),
    _ablation(ArcticAblationSpec, "", "exactly one of grid", {"spec.grid": ABSENT}),
    _ablation(
        ArcticAblationSpec,
        ".seeds",
        "at most 1024 trainings",
        {"spec.grid": [{"field": "seed", "values": list(range(33))}], "spec.seeds": 32},
        {"spec.grid": [{"field": "seed", "values": list(range(32))}], "spec.seeds": 32},
    ),
    _ablation(ArcticAblationSpec, ".halving", "a swarm learns", SWARM | {"spec.halving": {"first": 1}}, SWARM),
    _ablation(ArcticAblationSpec, ".seeds", "a seed of its own", SWARM | {"spec.seeds": 2}, SWARM | {"spec.seeds": 1}),
    _ablation(
        ArcticAblationSpec,
        ".mixture.around",
        "no such source",
        SWARM | {"spec.mixture": {"around": {"books": 1, "poems": 1}}},
        SWARM | {"spec.mixture": {"around": {"books": 1, "proofs": 1}}},
    ),
    _ablation(
        ArcticAblationSpec,
        ".halving.first",
        "a rung without tokens",
        {"spec.halving": {"first": "0.0k"}},
        {"spec.halving": {"first": "0.1k"}},
    ),
    _ablation(
        ArcticAblationSpec, ".halving.first", "a rung without tokens", {"spec.halving": {"first": 0}}, {"spec.seeds": 2}
    ),
    _evaluation(EvaluatedModel, "", "exactly one of training", {"spec.model": {}}, {"spec.model": {"service": "tiny"}}),
    _evaluation(EvaluatedModel, "", "exactly one of training", {"spec.model.uri": "file:///weights"}),
    _evaluation(
        EvaluatedModel,
        ".stage",
        "one of a training",
        {"spec.model": {"service": "tiny", "stage": "general"}},
        {"spec.model": {"training": "tiny", "stage": "general"}},
    ),
    _evaluation(
        EvaluatedModel,
        ".credentials",
        "weights take no key",
        {"spec.model.credentials": SECRET},
        {"spec.model": {"endpoint": {"url": "https://models/v1", "model": "tiny"}, "credentials": SECRET}},
    ),
    _evaluation(
        EvaluatedModel, ".uri", NO, {"spec.model": {"uri": "hf://a/b"}}, {"spec.model": {"uri": "file:///weights"}}
    ),
    _evaluation(SuiteData, ".uri", NO, {"spec.suites.0.uri": "hf://a/b"}),
    _evaluation(
        ArcticEvaluationSpec,
        ".temperature",
        "above 0",
        {"spec.samples": 2},
        {"spec.samples": 2, "spec.temperature": 1},
    ),
    *(
        _case(EVALUATION, ArcticEvaluationSpec, "", "can't change", bad, {"spec.retries": 9}, EVALUATION)
        for bad in (
            {"spec.model": {"training": "other"}},
            {"spec.suites.0.uri": "file:///suites/train.jsonl"},
            {"spec.temperature": 0.5},
            {"spec.seed": 1},
            {"spec.api": "chat"},
            {"spec.results.path": "other"},
        )
    ),
]
