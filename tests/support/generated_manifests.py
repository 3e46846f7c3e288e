"""Hypothesis strategies for manifests of both kinds: right by construction, or one change away from right."""

import copy
from typing import Any

from hypothesis import strategies as st

from arctic_api import API_VERSION
from arctic_api.rules import PRESET_EXPERTS, PRESET_POSITIONS

Manifest = dict[str, Any]

UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
DURATIONS = ["1s", "90s", "20m", "1h30m", "1500ms", "2.5s", "999999h"]
CATEGORIES = ["general", "code", "sql", "math", "instruction"]

names = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from("abz"),
    st.text("ab09-", max_size=20),
    st.sampled_from("ab09"),
)
percents = st.integers(0, 100).map(lambda share: f"{share}%")
label_maps = st.dictionaries(
    st.sampled_from(["app", "example.com/team", "a.b_c-d"]), st.sampled_from(["", "x", "A_1.b-2"]), max_size=3
)


def token_counts(count: int) -> st.SearchStrategy[int | str]:
    """The ways to write a number of tokens."""
    texts = [str(count)]
    for suffix, unit in UNITS.items():
        whole, rest = divmod(count, unit)
        thousandths, too_fine = divmod(rest * 1000, unit)
        if whole < 10**6 and not too_fine:
            texts.append(f"{whole}.{thousandths:03}{suffix}")
            if not thousandths:
                texts.append(f"{whole}{suffix}")
    return st.sampled_from([count, *texts])


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Manifest]:
    """An object with any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


def objects(
    optionals: dict[str, st.SearchStrategy[Any]] | None = None, /, **fields: Any
) -> st.SearchStrategy[Manifest]:
    """An object with all of the fields, and any of the optional ones."""
    return st.fixed_dictionaries(fields, optional=optionals or {})


affinity_terms = st.sampled_from([[], [{"weight": 1, "thing": None}]])
pod_affinities = optional(
    requiredDuringSchedulingIgnoredDuringExecution=affinity_terms,
    preferredDuringSchedulingIgnoredDuringExecution=affinity_terms,
)
templates = optional(
    nodeSelector=label_maps,
    topology=st.lists(
        st.sampled_from(["nvidia.com/gpu.clique", "rack", "topology.kubernetes.io/zone"]), min_size=1, unique=True
    ),
    labels=label_maps,
    annotations=label_maps,
    tolerations=st.lists(
        optional(
            key=st.just("nvidia.com/gpu"),
            operator=st.sampled_from(["Exists", "Equal"]),
            effect=st.sampled_from(["NoSchedule", "NoExecute"]),
            tolerationSeconds=st.integers(0, 100),
        ),
        max_size=2,
    ),
    affinity=optional(
        nodeAffinity=optional(
            requiredDuringSchedulingIgnoredDuringExecution=st.just({"nodeSelectorTerms": [{"thing": None}]}),
            preferredDuringSchedulingIgnoredDuringExecution=affinity_terms,
        ),
        podAffinity=pod_affinities,
        podAntiAffinity=pod_affinities,
    ),
    environment=st.lists(
        objects(name=st.sampled_from(["HF_HOME", "_x", "OMP_NUM_THREADS"]), value=st.text("ab", max_size=3)),
        max_size=2,
        unique_by=lambda item: item["name"],
    ),
    deviceClaims=st.lists(
        objects(name=st.sampled_from(["gpus", "card"]), templateName=st.just("eight-gpus")),
        max_size=2,
        unique_by=lambda item: item["name"],
    ),
    volumes=st.lists(
        objects(
            {"readOnly": st.booleans()},
            claimName=st.sampled_from(["corpus", "a.b"]),
            mountPath=st.sampled_from(["/data", "/var/lib/arctic/corpus", "/opt/arctic-more"]),
        ),
        max_size=2,
        unique_by=lambda item: item["mountPath"],
    ),
)
quantities = optional(
    **dict.fromkeys(["cpu", "memory"], st.sampled_from([0, 8, "500m", "16Gi", "1.5"])),
    **{"nvidia.com/gpu": st.sampled_from([0, 8, "8"])},
)
pod_fields = {
    "suspend": st.booleans(),
    "startDeadline": st.sampled_from(DURATIONS),
    "priorityClassName": st.just("high"),
    "resources": optional(requests=quantities, limits=quantities),
    "template": templates,
}
file_uris = st.sampled_from(["file:///data", "file:///var/lib/arctic/corpus/*.jsonl"])


def sources(source_names: list[str]) -> st.SearchStrategy[list[Manifest]]:
    """One source for each name."""
    return st.tuples(
        *(
            objects(
                {"format": st.sampled_from(["text", "jsonl", "parquet", "hf"])},
                name=st.just(name),
                category=st.sampled_from(CATEGORIES),
                uri=file_uris,
            )
            for name in source_names
        )
    ).map(list)


@st.composite
def learning_rates(draw: st.DrawFn, tokens: int) -> Manifest:
    """A learning rate for a stage of that many tokens."""
    peak = draw(st.floats(1e-6, 1) | st.just(1))
    rate: Manifest = {"peak": peak}
    if draw(st.booleans()):
        rate["schedule"] = draw(st.sampled_from(["cosine", "wsd", "constant"]))
    finals = [peak, 0] if rate.get("schedule") == "constant" else [peak, 0, peak / 2]
    if draw(st.booleans()):
        rate["final"] = draw(st.sampled_from(finals))
    if draw(st.booleans()):
        rate["warmupTokens"] = draw(st.integers(0, tokens).flatmap(token_counts))
    return rate


@st.composite
def stages(draw: st.DrawFn, name: str, source_names: list[str], length: int) -> Manifest:
    """A stage over some of the sources."""
    tokens = draw(st.integers(1, 10**7) | st.sampled_from([10**6, 15 * 10**11, 10**15, 10**18 - 1]))
    weights = st.floats(0, 10) | st.integers(0, 10)
    mixture = draw(st.dictionaries(st.sampled_from(source_names), weights))
    mixture[draw(st.sampled_from(source_names))] = draw(st.sampled_from([1, 0.5, 1e-9]))
    stage = {
        "name": name,
        "tokens": draw(token_counts(tokens)),
        "mixture": mixture,
        "learningRate": draw(learning_rates(tokens)),
    }
    return stage | ({"sequenceLength": length} if length != 4096 else {})


@st.composite
def curricula(draw: st.DrawFn, experts: int, positions: int) -> Manifest:
    """The parts of a training that depend on each other: data, curriculum, batch, parallelism."""
    source_names = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    stage_names = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    lengths = [draw(st.sampled_from([n for n in (8, 128, 4096) if n <= positions])) for _ in stage_names]
    nodes, processes, micro = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ranks = nodes * processes
    step = max(lengths) * micro * ranks * draw(st.integers(1, 1000))
    parallelism = {
        "nodes": nodes,
        "processesPerNode": processes,
        "expertParallel": draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == experts % n == 0])),
    }
    shared_by = st.sampled_from([n for n in (1, 2) if ranks % n == 0])  # what divides all lengths and presets' heads
    parallelism |= draw(optional(zeroStage=st.integers(0, 2), sequenceParallel=shared_by))
    data: Manifest = {"sources": draw(sources(source_names))}
    validation = st.none() | objects(fraction=st.floats(0.001, 0.9)) | objects(sources=sources(["held", "out"]))
    if chosen := draw(validation):
        data["validation"] = chosen
    return {
        "data": data,
        "curriculum": {
            "stages": [
                draw(stages(name, source_names, length)) for name, length in zip(stage_names, lengths, strict=True)
            ]
        },
        "batch": {"tokensPerStep": draw(token_counts(step)), "microBatchSize": micro},
        "parallelism": parallelism,
    }


stretched = objects(type=st.sampled_from(["linear", "yarn"]), factor=st.sampled_from([1, 1.5, 8]))
models = st.one_of(
    objects(
        {"ropeScaling": stretched}, preset=st.sampled_from(["arctic", "arctic-466m", "arctic-small", "arctic-tiny"])
    ),
    objects(config=st.sampled_from([{}, {"hidden_size": 64, "rope": {"any": [None, 1.5]}}])),
    objects({}, **{"from": objects(training=names)}),
    objects({}, **{"from": objects(uri=file_uris)}),
)
tokenizers = st.one_of(
    objects(train=optional(vocabSize=st.integers(300, 10**6))),
    objects(uri=file_uris),
)
checkpoints = objects(
    {
        "every": objects(steps=st.integers(1, 10**6)) | objects(interval=st.sampled_from(DURATIONS)),
        "keep": st.integers(1, 1000),
        "gracePeriod": st.sampled_from(DURATIONS),
        "export": st.sampled_from(["huggingface", "none"]),
    },
    volume=objects({"path": st.sampled_from(["runs", "a/b.c"])}, claimName=st.just("store")),
)
optimizers = optional(
    name=st.just("adamw"),
    beta1=st.floats(0, 0.99),
    beta2=st.just(0),
    epsilon=st.just(1e-8),
    weightDecay=st.sampled_from([0, 0.1]),
    gradientClipping=st.sampled_from([1, 0.5]),
)
restarts = optional(
    limit=st.integers(0, 10000),
    lossSpike=st.sampled_from(["skip", "rollback", "stop"]),
    backoff=st.sampled_from([{}, {"initial": "2s", "max": "30s"}, {"initial": "500ms", "factor": 1}, {"max": "10s"}]),
)


beside = st.just(
    {
        "suites": ["perplexity", "humaneval"],
        "data": [{"name": "humaneval", "uri": "file:///data"}],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
)
"""Suites that are run beside a training, which take its checkpoints or its export."""


def _manifest(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


@st.composite
def right_trainings(draw: st.DrawFn) -> Manifest:
    """An ArcticTraining that is right by construction."""
    model = draw(models)
    preset = model.get("preset", "")
    experts = PRESET_EXPERTS.get(preset, 720720)  # which every degree up to 16 divides
    spec = draw(curricula(experts, PRESET_POSITIONS.get(preset, 4096))) | {
        "model": model,
        "checkpoint": draw(checkpoints),
    }
    if "from" not in spec["model"] or draw(st.booleans()):
        spec["tokenizer"] = draw(tokenizers)
    spec |= draw(
        optional(
            **pod_fields,
            optimizer=optimizers,
            precision=st.sampled_from(["bf16", "fp8"]),
            seed=st.integers(0, 2**53 - 1),
            restart=restarts,
            evaluation=objects({"atStageEnd": st.booleans()}, suites=st.just(["perplexity"])) | beside,
            pricePerGPUHour=st.sampled_from(["2.50", "3"]),
            expectedTokensPerSecond=st.integers(1, 2**31 - 1),
            activeDeadline=st.sampled_from(DURATIONS),
            ttlAfterFinished=st.sampled_from(DURATIONS),
            image=st.just("example.com/arctic:1"),
            tracking=optional(
                mlflow=objects({"experiment": st.just("e")}, uri=st.sampled_from(["https://m", "file:///runs"])),
                wandb=objects({"mode": st.sampled_from(["online", "offline"])}, project=st.just("p")),
            ),
            paused=st.booleans(),
            stopAfter=st.sampled_from([stage["name"] for stage in spec["curriculum"]["stages"]]),
        )
    )
    if "data" in spec.get("evaluation", {}) and "from" in spec["model"]:
        spec["checkpoint"] |= {"export": "huggingface"}
    return _manifest("ArcticTraining", draw(names), spec)


@st.composite
def right_inferences(draw: st.DrawFn) -> Manifest:
    """An ArcticInference that is right by construction."""
    model = st.one_of(
        objects({"servedName": st.just("Arctic 1")}, training=names),
        objects(uri=file_uris),
    )
    spec = {"model": draw(model)} | draw(
        optional(
            **pod_fields,
            engine=optional(name=st.just("native"), image=st.just("x")),
            quantization=optional(
                weights=st.sampled_from(["fp8", "bf16", "fp32"]), kvCache=st.sampled_from(["fp8", "bf16", "fp32"])
            ),
            parallelism=optional(tensor=st.integers(1, 64), pipeline=st.integers(1, 64)),
            attention=optional(maxLength=st.integers(1, 10**6), sinks=st.just(0)),
            batching=optional(
                tokenBudget=st.integers(1, 10**6),
                maxSequences=st.integers(1, 1000),
                kvCache=optional(memoryFraction=st.floats(0.01, 0.99)),
                prefixCaching=st.sampled_from([False, True, "perKey"]),
                targetInterTokenLatency=st.sampled_from(DURATIONS),
                suffixDecoding=st.booleans(),
            ),
            replicas=st.integers(0, 1000),
            rollout=optional(
                maxSurge=st.integers(1, 1000),
                maxUnavailable=st.integers(0, 1000),
                drainTimeout=st.sampled_from(DURATIONS),
                paused=st.booleans(),
            ),
            service=optional(port=st.integers(1, 65535), cors=st.just(["https://chat.example.com", "*"])),
        )
    )
    return _manifest("ArcticInference", draw(names), spec)


@st.composite
def right_evaluations(draw: st.DrawFn) -> Manifest:
    """An ArcticEvaluation that is right by construction."""
    model = st.one_of(
        objects({"stage": names}, training=names),
        objects(uri=file_uris),
        objects({"credentials": st.just({"secretName": "keys"})}, service=names),
        objects(endpoint=objects(url=st.sampled_from(["http://m:8000/v1", "https://m"]), model=st.just("m"))),
    )
    suite = objects(name=st.sampled_from(["humaneval-plus", "spider", "perplexity"]), uri=file_uris)
    spec = {
        "model": draw(model),
        "suites": draw(st.lists(suite, min_size=1, max_size=3, unique_by=lambda item: item["name"])),
        "results": draw(objects({"path": st.sampled_from(["runs", "a/b.c"])}, claimName=st.just("store"))),
    }
    if draw(st.booleans()):
        spec |= draw(objects(samples=st.integers(1, 1000), temperature=st.sampled_from([1, 0.5, 2])))
    pods = {field: pod_fields[field] for field in ("priorityClassName", "resources", "template")}
    spec |= draw(
        optional(
            **pods,
            seed=st.integers(0, 2**53 - 1),
            api=st.sampled_from(["chat", "completions"]),
            concurrency=st.integers(1, 64),
            retries=st.integers(0, 100),
            compare=st.just(["first", "second"]),
            image=st.just("example.com/arctic:1"),
        )
    )
    return _manifest("ArcticEvaluation", draw(names), spec)


right_manifests = right_trainings() | right_inferences() | right_evaluations()

JUNK: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    0.5,
    -0.5,
    10**19,
    "",
    "3",
    "x",
    "1.5G",
    "-1",
    "0",
    "10%",
    "9s",
    "file:///x",
]
JUNK += [[], {}, [None], ["x"], {"x": 1}, {"name": "x"}]


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in children for place in ((*path, key), *_places(child, (*path, key)))]


@st.composite
def changed_manifests(draw: st.DrawFn) -> Manifest:
    """A right manifest with one field of its spec removed, added, doubled or replaced: most are wrong."""
    manifest = copy.deepcopy(draw(right_manifests))
    last: Any
    *parents, last = draw(st.sampled_from(_places(manifest["spec"])))
    node: Any = manifest["spec"]
    for step in parents:
        node = node[step]
    match draw(st.sampled_from(["remove", "add", "double", "replace", "replace", "replace"])):
        case "remove":
            del node[last]
        case "add" if isinstance(node, dict):
            node["tokens"] = 1
        case "double" if isinstance(node, list):
            node.append(copy.deepcopy(node[last]))
        case _:
            node[last] = draw(st.sampled_from(JUNK))
    return manifest


plain_scalars = st.one_of(
    st.sampled_from(["on", "No", "y", "~", "null", "TRUE", "''", '"1"', "0777", "08", "0o17", "0b11", "0x1F", "-0"]),
    st.sampled_from(["3e-4", "1e12", "1e21", "1e400", "1_000", "1.", ".5", "+5", "2001-01-01", "1:20", "-.5e-3", "<<"]),
    st.from_regex(r"[-+]?[0-9_]{1,22}(\.[0-9]{0,5})?([eE][-+]?[0-9]{1,2})?", fullmatch=True).filter(
        lambda text: text[0] != "_"
    ),
    st.from_regex(r"0[xXbBoO]?[0-9a-fA-F_]{1,8}", fullmatch=True),
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9]{0,3}", fullmatch=True),
)
"""Plain scalars of YAML as people write them, with those that its versions take for different things."""
