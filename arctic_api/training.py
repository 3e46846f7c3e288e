"""`ArcticTraining`: one model trained over a curriculum of stages."""

from typing import Annotated, Any, Literal

from pydantic import Field

from arctic_api.common import (
    FOLDER_PATTERN,
    MAP_BY_NAME,
    MAP_BY_TYPE,
    MAX_LABEL,
    OPAQUE,
    SET,
    SUBDOMAIN_PATTERN,
    TRACKING_PATTERN,
    BaseWeights,
    Condition,
    Count,
    DecimalText,
    Duration,
    ItemName,
    Manifest,
    ObjectName,
    Percent,
    PositiveFloat,
    Resource,
    Resources,
    RopeScaling,
    SecretReference,
    Subdomain,
    Timestamp,
    Tokens,
    Uri,
    WorkerTemplate,
)

KIND = "ArcticTraining"
PLURAL = "arctictrainings"
SHORT_NAME = "atr"

Preset = Literal["arctic", "arctic-466m", "arctic-small", "arctic-tiny"]
Category = Literal["general", "code", "sql", "math", "instruction"]
Suite = Literal["humaneval", "humaneval-plus", "mbpp-plus", "spider", "ifeval", "gsm8k", "perplexity"]
Precision = Literal["bf16", "fp8"]
OWN_SUITES = frozenset({"perplexity"})
"""Suites that a training runs itself; the others are run beside it."""

MAX_SEED = 2**53 - 1  # what every JSON reader keeps exactly


class WeightsFrom(Resource):
    """Weights to start from: exactly one of the two."""

    uri: Uri | None = None
    """A folder in the Hugging Face layout, or a GGUF file: `file:///...` alone.

    Of an Arctic, or of a Llama: a layer without experts is Llama's own.
    """
    training: ObjectName | None = None
    """An ArcticTraining in this namespace whose export is read."""


class Lora(Resource):
    """Low-rank adaptation (Hu et al., 2021).

    Of attention's projections, the residual MLP, and the MLP of layers without experts.
    """

    rank: Annotated[int, Field(ge=1, le=1024)]
    """Rank of the added matrices."""
    alpha: PositiveFloat
    """Scale of the addition, which is multiplied by alpha / rank."""


class Adapter(Resource):
    """Trains a small addition to weights that stay as they are."""

    lora: Lora
    """Low-rank adaptation."""


class Upcycle(Resource):
    """Gives experts to a model without any; before the first step it computes what it did (sparse upcycling).

    Hybrid layers are put between the model's own.
    """

    experts: Annotated[int, Field(ge=1, le=4096)]
    """Experts of a hybrid layer."""
    top_k: Annotated[int, Field(ge=1, le=64)] = 2
    """Experts of a token."""
    every: Annotated[int, Field(ge=2, le=4096)] = 6
    """Which layers are hybrid: the `every`-th, the one after as many again, and so on."""


class TrainingModel(Resource):
    """Which model is trained: exactly one of `preset`, `config` and `from`."""

    preset: Preset | None = None
    """A named configuration: `arctic` is the published one of 480B parameters."""
    config: dict[str, Any] | None = Field(None, json_schema_extra=OPAQUE)
    """The content of a Hugging Face `config.json` of an Arctic."""
    from_: WeightsFrom | None = Field(None, alias="from")
    """Weights to continue from."""
    upcycle: Upcycle | None = None
    """Experts for a model of `from` that has none."""
    adapter: Adapter | None = None
    """Train an adapter on the weights of `from` instead of all of them."""
    rope_scaling: RopeScaling | None = None
    """Stretches rotary positions: the model has `factor` times as many, and what is exported says so."""


class TokenizerTraining(Resource):
    """Trains a byte-level BPE tokenizer on the sources before the first stage."""

    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 32000
    """Number of entries, special tokens included."""


class Tokenizer(Resource):
    """Where the tokenizer comes from: exactly one of the two; by default it is the one beside `model.from`."""

    train: TokenizerTraining | None = None
    """Train one on the sources."""
    uri: Uri | None = None
    """A folder with a `tokenizer.json`: `file:///...` alone."""


class Source(Resource):
    """One data set."""

    name: ItemName
    """Name by which mixtures refer to it."""
    category: Category
    """What kind of text it is."""
    uri: Uri
    """A file, a folder or a glob: `file:///...` alone, on what every pod mounts."""
    format: Literal["text", "jsonl", "parquet", "hf"] = "text"
    """`text`: a document a file, a long one in several; `jsonl`: JSON objects, a line each or in one array; `parquet`;
    `hf`: a folder that `datasets` saved. Text and JSON may be packed by gzip, Zstandard, xz or bzip2."""
    content: Literal["text", "messages"] = "text"
    """`text`, of which all is learnt; `messages`: conversations, of which the answers are learnt and nothing else.

    A conversation is a list of objects with `role` and `content`, and is written by the tokenizer's chat template.
    """
    field: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Field that holds the content, in all formats but `text`; named as the content is if unset."""
    split: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Split of a saved DatasetDict, format `hf` alone; `train` if unset."""
    when_exhausted: Literal["repeat", "refuse"] = "repeat"
    """What to do if the curriculum asks for more tokens than the source has: read it again, or end before step 1."""
    max_skipped: Percent = "1%"
    """Share of rows that may be without a usable text: they are left out and counted; more are refused."""
    credentials: SecretReference | None = None
    """Secret with the keys to reach it: refused, as files need none."""


class Validation(Resource):
    """Held-out text: exactly one of the two."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of every source's documents that is held out."""
    sources: Annotated[list[Source], Field(min_length=1, max_length=64)] | None = Field(
        None, json_schema_extra=MAP_BY_NAME
    )
    """Sources that are only for validation."""


class Data(Resource):
    """The data sets."""

    sources: Annotated[list[Source], Field(min_length=1, max_length=64)] = Field(json_schema_extra=MAP_BY_NAME)
    """Data sets that mixtures draw from."""
    validation: Validation = Validation(fraction=0.01)
    """Held-out text."""
    simulated_tokens: Tokens | None = None
    """Budget of a larger run that this one stands for: of each source only this run's share of it is used, so that it
    is read as often as there. What is held out stays whole."""


class LearningRate(Resource):
    """Learning rate over the tokens of one stage: linear warm-up to `peak`, then the schedule down to `final`.

    The warm-up begins at the rate that the stage before ended with, in the first stage at zero.
    """

    peak: PositiveFloat
    """Highest rate."""
    final: Annotated[float, Field(ge=0)] = 0.0
    """Rate at the end of the stage."""
    warmup_tokens: Tokens = 0
    """Tokens over which the rate comes to the peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after the warm-up; `wsd` holds the peak and decays linearly over the last tenth."""


class Stage(Resource):
    """One part of the curriculum."""

    name: ItemName
    """Name of the stage."""
    tokens: Tokens
    """Token budget."""
    mixture: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=64)]
    """Weight of each source, by its name; weights are normalised to sum to 1."""
    final_mixture: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=64)] | None = None
    """Weights at the stage's end, of sources in `mixture`: from those to these they change evenly over its tokens."""
    tokens_per_step: Tokens | None = None
    """Tokens of one optimizer update in this stage; `batch.tokensPerStep` if unset."""
    learning_rate: LearningRate
    """Learning rate of this stage."""
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = 4096
    """Tokens a sequence, at most as many as the model has positions."""


class Curriculum(Resource):
    """The stages, in order."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=16)] = Field(json_schema_extra=MAP_BY_NAME)
    """Stages, trained one after the other."""


class Optimizer(Resource):
    """AdamW (Loshchilov and Hutter, 2019)."""

    name: Literal["adamw"] = "adamw"
    """Optimizer."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    epsilon: PositiveFloat = 1e-8
    """Term that keeps the division finite."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay; norms are exempt."""
    gradient_clipping: Annotated[float, Field(gt=0)] = 1.0
    """Largest global norm of the gradient."""


class Batch(Resource):
    """How many tokens make one step."""

    tokens_per_step: Tokens
    """Tokens of one optimizer update, over all ranks.

    A multiple of sequenceLength x microBatchSize x ranks / sequenceParallel, in every stage.
    """
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] = 1
    """Sequences a rank computes at once."""


class TrainingParallelism(Resource):
    """How the model is laid over the world of `nodes` x `processesPerNode` ranks."""

    nodes: Annotated[int, Field(ge=1, le=4096)] = 1
    """Pods, one a node."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks in each pod, one a GPU."""
    expert_parallel: Annotated[int, Field(ge=1, le=4096)] = 1
    """Ranks that share out the experts; divides the world and the number of experts."""
    sequence_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks that share out the tokens of each sequence, and around attention its heads (DeepSpeed Ulysses); divides the
    world, every stage's sequenceLength and the key-value heads."""
    zero_stage: Annotated[int, Field(ge=0, le=2)] = 2
    """What the ranks that hold the same parameters share out of them: 0 nothing, 1 the optimizer's state, 2 gradients
    too (DeepSpeed ZeRO). Parameters themselves (stage 3) stay whole: what is too large for a rank are the experts,
    which `expertParallel` shares out."""


class Every(Resource):
    """How often a checkpoint is written: exactly one of the two."""

    steps: Count | None = None
    """After so many steps."""
    interval: Duration | None = None
    """After so much time, at least 1s."""


class CheckpointVolume(Resource):
    """A claim that all nodes can write (ReadWriteMany)."""

    claim_name: Subdomain
    """Name of the PersistentVolumeClaim, in this namespace."""
    path: Annotated[str, Field(pattern=FOLDER_PATTERN, max_length=512)] | None = None
    """Folder in the claim; the claim's root if unset."""


class Checkpoint(Resource):
    """Where and when the state is saved: exactly one of `volume` and `uri`."""

    volume: CheckpointVolume | None = None
    """A claim that all nodes can write."""
    uri: Uri | None = None
    """An object store: refused, as none is supported yet."""
    credentials: SecretReference | None = None
    """Secret with the keys of the object store: refused with it."""
    every: Every = Every(steps=500)
    """How often; besides at the end of each stage and when interrupted."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many are kept, besides the last of each stage."""
    grace_period: Duration = "120s"
    """Time that a pod gets to write a checkpoint when it is asked to go."""
    export: Literal["huggingface", "adapter", "none"] = "huggingface"
    """What is written at the end: weights in the Hugging Face layout, those of an adapter merged into them.

    `adapter` writes the adapter alone, as the library peft does; `none` writes nothing.
    """


class Backoff(Resource):
    """Waiting time before the next attempt."""

    initial: Duration = "10s"
    """Before the second attempt."""
    factor: Annotated[int, Field(ge=1, le=10)] = 2
    """Growth with each further failure, until an attempt has lived as long as `max`."""
    max: Duration = "10m"
    """Longest wait."""


class Restart(Resource):
    """What happens when an attempt fails."""

    limit: Annotated[int, Field(ge=0, le=10000)] = 10
    """Failed attempts that are followed by another; drains and preemptions are not counted."""
    backoff: Backoff = Backoff()
    """Waiting time between attempts."""
    loss_spike: Literal["skip", "rollback", "stop"] | None = None
    """What to do when the loss jumps: 8 standard deviations, and 5%, above the median of the stage's last 128 steps.

    `skip` leaves the update out; `rollback` goes back to the last checkpoint and passes over the data up to the jump;
    `stop` fails the training, its checkpoint kept, until it is edited. By default a jump changes nothing.
    """


class SuiteData(Resource):
    """A suite, and where its data are, in the format that they are published in."""

    name: Suite
    """Name of the suite."""
    uri: Uri
    """A file, or a folder for `spider`: `file:///...` alone, on what the pod mounts."""


class Evaluation(Resource):
    """Judges the model on the way."""

    at_stage_end: bool = True
    """Whether to evaluate at the end of each stage."""
    every: Count | None = None
    """Steps between evaluations besides; what they find is in the run's folder, `evaluation/curve.jsonl`."""
    suites: Annotated[list[Suite], Field(min_length=1, max_length=8)] = Field(json_schema_extra=SET)
    """What is measured: `perplexity` by the training itself, on held-out text; the others beside it, by an
    ArcticEvaluation of each stage's last checkpoint, for which the training doesn't wait."""
    data: Annotated[list[SuiteData], Field(min_length=1, max_length=7)] | None = Field(
        None, json_schema_extra=MAP_BY_NAME
    )
    """Where the data of suites other than `perplexity` are, on claims of `template.volumes`."""
    resources: Resources | None = None
    """Compute resources of the pods that evaluate beside it; the operator's default if unset."""


class Mlflow(Resource):
    """An MLflow tracking server."""

    uri: Annotated[str, Field(pattern=TRACKING_PATTERN, max_length=1024)]
    """Where it is: `https://...`, or a folder that it reads later, `file:///...`."""
    experiment: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Name of the experiment; the training's name if unset."""


class WeightsAndBiases(Resource):
    """A project of Weights & Biases."""

    project: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of the project."""
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """User or team that it belongs to."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes into the run's folder, for `wandb sync`; `online` needs its key in the workers' environment."""


class Tracking(Resource):
    """Where the figures of a run are sent besides."""

    mlflow: Mlflow | None = None
    """MLflow."""
    wandb: WeightsAndBiases | None = None
    """Weights & Biases."""


class ArcticTrainingSpec(Resource):
    """What to train, on what, how and where."""

    model: TrainingModel
    """Which model."""
    tokenizer: Tokenizer | None = None
    """Which tokenizer."""
    data: Data
    """The data sets."""
    curriculum: Curriculum
    """The stages."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of the weights and of the order of data."""
    batch: Batch
    """Tokens a step."""
    parallelism: TrainingParallelism = TrainingParallelism()
    """How the model is laid over the world."""
    precision: Precision = "bf16"
    """Numbers in which the experts, attention's projections and the dense MLPs are multiplied, forward and backward.

    `bf16`: as the rest of the model, which is bf16 on GPUs and fp32 on CPUs. `fp8`: e4m3 with a scale a row, on GPUs of
    compute capability 8.9 or later; CPUs round alike and multiply in fp32, to try it. Weights, optimizer, checkpoints
    and exports are the same at either.
    """
    checkpoint: Checkpoint
    """Where and when the state is saved."""
    restart: Restart = Restart()
    """What happens when an attempt fails."""
    evaluation: Evaluation | None = None
    """Judges the model on the way."""
    tracking: Tracking | None = None
    """Where the figures of a run are sent besides; TensorBoard's files are in the run's folder anyway."""
    price_per_gpu_hour: DecimalText | None = Field(None, alias="pricePerGPUHour")
    """Price for status.costUSD and status.plannedCostUSD, in US dollars, as text: "2.50"."""
    expected_tokens_per_second: Count | None = None
    """Rate at which status.plannedTime and status.plannedCostUSD are said before the start; nothing else follows."""
    suspend: bool = False
    """Stops the world after a checkpoint, and keeps it stopped."""
    paused: bool = False
    """Holds the training between two steps, its pods kept: to go on later without starting anew."""
    suspend_at: Tokens | None = None
    """Suspends it once so many tokens are trained, judged and in a checkpoint: raise it, or leave it out, to go on."""
    stop_after: ItemName | None = None
    """Ends the training with this stage, as succeeded and with its export; at once if that stage is over already."""
    start_deadline: Duration | None = None
    """Fails if not running so long after creation."""
    active_deadline: Duration | None = None
    """Fails if not done so long after the first start."""
    ttl_after_finished: Duration | None = None
    """Deletes the object so long after its end."""
    queue: Annotated[str, Field(pattern=SUBDOMAIN_PATTERN, max_length=MAX_LABEL)] | None = None
    """Name of the Kueue LocalQueue, in the same namespace, that admits each world and may take its nodes back."""
    priority_class_name: Subdomain | None = None
    """PriorityClass of the pods."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the workers; the operator's default if unset."""
    resources: Resources | None = None
    """Compute resources of each pod. With a limit on CPU, ranks that compute on CPUs take its cores for their own."""
    template: WorkerTemplate | None = None
    """What else may be said about the pods."""


class AttemptStatus(Resource):
    """How one attempt ended."""

    number: Annotated[int, Field(ge=1)]
    """Number of the attempt, from 1."""
    reason: str
    """Why it ended, in CamelCase: `Interrupted`, `PodDeleted`, `NodeLost`, `OOMKilled`, `WorkerFailed`, ..."""
    message: str = ""
    """What happened, for people."""
    counted: bool = False
    """Whether it counts towards `restart.limit`."""
    refused: str | None = None
    """Revision of the specification that its workers refused, where an edit can mend that: the next attempt waits."""
    start_time: Timestamp | None = None
    """When its world was made."""
    completion_time: Timestamp
    """When its end was seen."""


class StageStatus(Resource):
    """Progress of one stage."""

    name: str
    """Name of the stage."""
    tokens: int = 0
    """Tokens trained so far."""
    budget: int
    """Tokens to train."""
    start_time: Timestamp | None = None
    """When the stage began."""
    completion_time: Timestamp | None = None
    """When the stage was done."""
    checkpoint: str | None = None
    """Where the checkpoint of its end is."""
    initial_validation_loss: str | None = None
    """Loss on held-out text at its start, in nats a token."""
    validation_loss: str | None = None
    """Loss on the same text at its end, in nats a token."""


class SourceStatus(Resource):
    """What the workers found in one source, and how much of it is used."""

    name: str
    """Name of the source; `validation.NAME` for one that is only for validation."""
    documents: int = 0
    """Documents in it, those that are held out among them."""
    skipped: int = 0
    """Rows that were left out because they had no usable text."""
    tokens: int = 0
    """Tokens in it to train on."""
    epochs: str = "0"
    """How often these have been read so far."""
    planned_epochs: str = "0"
    """How often they will have been read at the end of the curriculum."""
    unused_splits: list[str] | None = None
    """Splits of a DatasetDict that are not read."""


class LastCheckpoint(Resource):
    """The newest committed checkpoint."""

    step: int
    """Optimizer updates before it."""
    tokens: int
    """Tokens trained before it."""
    uri: str
    """Where it is."""
    time: Timestamp
    """When it was committed."""


class SourceLoss(Resource):
    """How well the text of one source is predicted while it is trained on."""

    name: str
    """Name of the source."""
    loss: str
    """Mean loss of its latest sequences, in nats a token."""


class TimeShares(Resource):
    """What the time of the latest attempt is spent on, from 0 to 1; what is hidden behind compute counts as that."""

    data: str | None = None
    """Fetching sequences."""
    compute: str | None = None
    """Forward and backward passes and updates; on GPUs with the communication among them."""
    communication: str | None = None
    """Waiting in collectives; unset on GPUs, where that can't be told from outside."""
    checkpoint: str | None = None
    """Copying the state for checkpoints, and waiting for those of stages' ends."""
    evaluation: str | None = None
    """Held-out text and suites."""
    pause: str | None = None
    """Being paused."""


class Routing(Resource):
    """How the routers share out tokens over experts, over all layers."""

    imbalance: str
    """Load of the busiest expert over that of even routing, in the layer where that is highest."""
    entropy: str
    """Entropy of a token's probabilities over that of even ones, from 0 to 1, in the layer where that is lowest."""
    dead_experts: int
    """Experts without a token for 100 steps."""
    dropped: str
    """Share of the choices that were dropped, in the layer where that is highest."""


class CheckpointRequest(Resource):
    """The checkpoint that was asked for last, by the annotation `arctic.dev/checkpoint-request`."""

    token: str
    """Value of the annotation that this answers: another one asks for another checkpoint."""
    step: int
    """Optimizer updates before it."""
    uri: str
    """Where it is."""


class Export(Resource):
    """The exported weights."""

    uri: str
    """Folder in the Hugging Face layout."""


class ArcticTrainingStatus(Resource):
    """What was observed last. Real numbers are text, as Kubernetes conventions ask."""

    state: str | None = None
    """One word for people."""
    observed_generation: int | None = None
    """The metadata.generation that the rest was judged from."""
    conditions: list[Condition] | None = Field(None, json_schema_extra=MAP_BY_TYPE)
    """Suspended, PodsScheduled, WorkersConnected, CheckpointReady, Degraded, Succeeded, Failed."""
    stage: str | None = None
    """Name of the stage under way."""
    stages: list[StageStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """Progress of each stage."""
    sources: list[SourceStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """What was found in each source that is trained on; there once the text is prepared, before the first step."""
    step: int | None = None
    """Optimizer updates so far."""
    tokens: int | None = None
    """Tokens trained so far, over all stages."""
    loss: str | None = None
    """Training loss of the latest step, in nats a token."""
    loss_by_source: list[SourceLoss] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """Training loss of each source that was drawn from lately."""
    learning_rate: str | None = None
    """Learning rate of the latest step."""
    gradient_norm: str | None = None
    """Global norm of the latest step's gradient, before clipping."""
    skipped_updates: int | None = None
    """Updates that were left out: the gradient was not finite, or the loss jumped (`restart.lossSpike: skip`)."""
    planned_steps: int | None = None
    """Optimizer updates of all stages that are to be trained: there before the first pod."""
    planned_tokens: int | None = None
    """Tokens of these: a stage's budget is rounded up to whole updates."""
    planned_memory: str | None = None
    """Memory that a rank takes at most, as a quantity, the GPU's on GPUs: there before the first step.

    It is planned from the model, the batch and the parallel degrees.
    """
    planned_time: str | None = None
    """Time that plannedTokens take at spec.expectedTokensPerSecond."""
    planned_cost_usd: str | None = Field(None, alias="plannedCostUSD")
    """What that costs at spec.pricePerGPUHour, in US dollars; where pods ask for no GPUs, as many hours of pods."""
    recomputes_activations: bool | None = None
    """True where the stage under way has no room for all activations: the backward pass computes them again."""
    time_shares: TimeShares | None = None
    """What the time of the latest attempt is spent on."""
    routing: Routing | None = None
    """How the routers share out tokens over experts."""
    tokens_per_second: int | None = None
    """Tokens trained a second, over the whole world."""
    mfu: str | None = None
    """Model FLOPs utilization: useful operations by the peak of the hardware, from 0 to 1.

    The peak is the vendor's word on GPUs; on CPUs it is measured at the start of an attempt.
    """
    exposed_communication: str | None = None
    """Share of the time of exchanges that the latest step could only wait for them, as rank 0 measured it: of all, by
    kind (experts' rows: counts, dispatch, combine; heads of shared sequences; ZeRO's gradients, and its update of norm
    and weights), and the chunks in which rows are exchanged. Absent where nothing is exchanged, and on GPUs, where it
    isn't measured.
    """
    gpu_hours: str | None = None
    """Hours of GPUs spent, over all attempts; where pods ask for no GPUs, hours of pods."""
    cost_usd: str | None = Field(None, alias="costUSD")
    """gpuHours times spec.pricePerGPUHour, in US dollars."""
    eta: Timestamp | None = None
    """When the last stage will be done at the present rate."""
    attempt: int | None = None
    """Number of the latest attempt, from 1."""
    restarts: int | None = None
    """Failed attempts that count towards the limit."""
    attempts: list[AttemptStatus] | None = Field(
        None, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]}
    )
    """The latest attempts that ended, oldest first."""
    start_time: Timestamp | None = None
    """When the first attempt began to run."""
    completion_time: Timestamp | None = None
    """When it succeeded, or failed for good: unset while an edit can mend what its workers refused."""
    last_checkpoint: LastCheckpoint | None = None
    """The newest committed checkpoint."""
    checkpoint_request: CheckpointRequest | None = None
    """The checkpoint that was asked for last, once it is committed."""
    export: Export | None = None
    """The exported weights."""
    evaluation: dict[str, str] | None = None
    """Latest result of each suite."""
    weights: BaseWeights | None = None
    """Weights of the training that `spec.model` names."""


class ArcticTraining(Manifest):
    """Trains one Arctic over a curriculum of stages."""

    spec: ArcticTrainingSpec
    """What to train, on what, how and where."""
    status: ArcticTrainingStatus | None = None
    """What was observed last; written by the operator."""
