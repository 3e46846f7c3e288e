"""`arctic train` and `arctic serve`: a manifest as local processes, one a pod that a cluster would run.

The processes get the same world documents as pods do, with loopback for a network and a folder for each claim.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click
from pydantic import ValidationError

from arctic_api.common import ClaimVolume, SecretReference, WorkerTemplate, parse_duration
from arctic_api.inference import ArcticInferenceSpec, InferenceModel
from arctic_api.keys import read_keys
from arctic_api.training import ArcticTrainingSpec, Restart, WeightsFrom
from arctic_api.uris import path_of
from arctic_api.world import (
    NODE_RANK_VARIABLE,
    SUSPENDED,
    WORLD_VARIABLE,
    ExitCode,
    InferenceGroup,
    Mount,
    Ports,
    Report,
    TrainingWorld,
    run_folder,
)
from arctic_cli.data import Supply, look_at_data
from arctic_cli.forecast import dry_run_options
from arctic_cli.manifest import ManifestError, load_one
from arctic_cli.running import alone, announced
from arctic_cluster.files import FOR_PODS, readable_by_all
from arctic_cluster.image import USER
from arctic_cluster.paths import default_secrets, default_volumes
from arctic_workers.control import lifeline
from arctic_workers.control.ports import LOOPBACK, free_ports
from arctic_workers.control.signals import StopFlag

DEFAULT_NAMESPACE = "default"
TRAINING_MODULE = "arctic_workers.training"
INFERENCE_MODULE = "arctic_workers.inference"
_FAILED = 1
_POLL_SECONDS = 0.2
_FROM = "spec.model.from.training"
_ONLY_ON_A_CLUSTER = (
    "startDeadline",
    "ttlAfterFinished",
    "pricePerGPUHour",
    "expectedTokensPerSecond",
    "priorityClassName",
    "queue",
    "evaluation.data",
    "evaluation.resources",
    "image",
    "engine.image",
    "resources",
    "replicas",
    "autoscaling",
    "rollout.maxSurge",
    "rollout.maxUnavailable",
    "rollout.paused",
    "rollout.canary",
    "template.nodeSelector",
    "template.tolerations",
    "template.affinity",
    "template.topology",
    "template.deviceClaims",
    "template.labels",
    "template.annotations",
)
"""Fields of both kinds that say nothing about local processes."""


def local_uid(namespace: str, name: str) -> str:
    """Return the uid that stands for an object no cluster knows: the same each time, so that a second run resumes."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"arctic.dev/{namespace}/{name}"))


def local_mounts(template: WorkerTemplate | None, volumes: Path) -> list[Mount]:
    """Return where the claims of a template are on this machine."""
    claims: list[ClaimVolume] = (template.volumes if template else None) or []
    return [Mount(mount_path=claim.mount_path, path=str(volumes / claim.claim_name)) for claim in claims]


def training_worlds(manifest: dict[str, Any], volumes: Path, attempt: int, scratch: Path) -> list[TrainingWorld]:
    """Return the world document of each node of one attempt; they differ in ports alone.

    The epoch is the time in seconds, which grows over runs as over attempts.
    """
    spec = ArcticTrainingSpec.model_validate(manifest["spec"])
    namespace, name = identity(manifest)
    uid = local_uid(namespace, name)
    store = _local_store(spec, namespace, volumes)
    weights = spec.model.from_.training if spec.model.from_ else None
    rendezvous, *ports = free_ports(1 + 2 * spec.parallelism.nodes)
    epoch = int(time.time())
    return [
        TrainingWorld(
            namespace=namespace,
            name=name,
            uid=uid,
            first_host=LOOPBACK,
            ports=Ports(control=ports[2 * node], metrics=ports[2 * node + 1], rendezvous=rendezvous),
            tls_folder=None,
            termination_message=str(scratch / f"report-{node}.json"),
            mounts=local_mounts(spec.template, volumes),
            spec=spec,
            attempt=attempt,
            epoch=epoch,
            run_folder=run_folder(str(store), namespace, name, uid),
            weights_folder=str(_export_of(weights, namespace, volumes, _FROM)) if weights else None,
        )
        for node in range(spec.parallelism.nodes)
    ]


def inference_groups(
    manifest: dict[str, Any], volumes: Path, scratch: Path, secrets: Path | None = None
) -> list[InferenceGroup]:
    """Return the group document of each pipeline rank; they differ in ports alone."""
    spec = ArcticInferenceSpec.model_validate(manifest["spec"])
    namespace, name = identity(manifest)
    pipeline = spec.parallelism.pipeline
    rendezvous, *ports = free_ports(1 + 2 * pipeline)
    mounts = local_mounts(spec.template, volumes)
    folder = weights_folder(spec.model, namespace, volumes)
    keys = str(keys_folder(spec.service.auth, secrets or default_secrets())) if spec.service.auth else None
    return [
        InferenceGroup(
            namespace=namespace,
            name=name,
            uid=local_uid(namespace, name),
            hosts=[LOOPBACK] * pipeline,
            ports=Ports(
                control=ports[2 * rank], metrics=ports[2 * rank + 1], rendezvous=rendezvous, http=spec.service.port
            ),
            tls_folder=None,
            termination_message=str(scratch / f"report-{rank}.json"),
            mounts=mounts,
            spec=spec,
            group=f"{name}-local",
            revision="local",
            model_folder=folder,
            keys_folder=keys,
        )
        for rank in range(pipeline)
    ]


def keys_folder(auth: SecretReference, secrets: Path) -> Path:
    """Return the folder that stands for the Secret with the API keys; who serves closed must have one."""
    folder = secrets / auth.secret_name
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    keys = read_keys({path.name: path.read_bytes() for path in files})
    if keys.problems:
        raise click.ClickException(
            f"spec.service.auth: {folder} has what no client can send: {'; '.join(keys.problems)}"
        )
    if not keys.digests:
        raise click.ClickException(
            f"spec.service.auth: no API key in {folder}: write one a line into a file there, or leave auth out"
        )
    return folder


def identity(manifest: dict[str, Any]) -> tuple[str, str]:
    """Return the namespace and the name of a manifest."""
    metadata = manifest["metadata"]
    return metadata.get("namespace") or DEFAULT_NAMESPACE, metadata["name"]


def _local_store(spec: ArcticTrainingSpec, namespace: str, volumes: Path) -> Path:
    """Return the store of a training, with the namespace's folder in it."""
    volume = spec.checkpoint.volume
    assert volume is not None, "the rules refuse a manifest without a checkpoint volume"
    claim = volumes / volume.claim_name
    store = claim / (volume.path or "")
    with readable_by_all():
        volumes.mkdir(parents=True, exist_ok=True)
        _make_for_pods(store / namespace, claim)
    return store


def _make_for_pods(folder: Path, claim: Path) -> None:
    """Make the folder of a claim, with those around it; what root makes is given away.

    Pods of the local cluster write there too, and they are not root: a claim is the pods' own, and the rest is of
    whoever owns what is around it.
    """
    if folder.exists():
        return
    if folder != claim:
        _make_for_pods(folder.parent, claim)
    folder.mkdir()
    if os.geteuid() == 0:
        around = folder.parent.stat()
        os.chown(folder, *((USER, USER) if folder == claim else (around.st_uid, around.st_gid)))


def weights_folder(source: InferenceModel | WeightsFrom, namespace: str, volumes: Path) -> str:
    """Return the folder of the weights that a manifest names: of a run here, or one that mounts may lead to."""
    if source.training:
        field = "spec.model.training" if isinstance(source, InferenceModel) else _FROM
        return str(_export_of(source.training, namespace, volumes, field))
    return path_of(source.uri or "")


def _export_of(training: str, namespace: str, volumes: Path, field: str) -> Path:
    """Return the export of a training that ran here, in whichever claim it is; `field` is what names the training."""
    place = Path(run_folder("", namespace, training, local_uid(namespace, training)).lstrip("/")) / "export"
    found = [folder for folder in sorted(volumes.glob(f"**/{place}")) if folder.is_dir()]
    if not found:
        raise click.ClickException(
            f"{field}: no export of {training!r} under {volumes}: run `arctic train` on its manifest first"
        )
    return found[0].absolute()


class Processes:
    """The local processes of one world, which start and end as one; `say` is told each line that they print."""

    def __init__(
        self,
        module: str,
        worlds: Sequence[TrainingWorld | InferenceGroup],
        template: WorkerTemplate | None,
        say: Callable[[str], None] = click.echo,
    ) -> None:
        environment = {item.name: item.value for item in (template.environment if template else None) or []}
        self._children = [self._start(module, rank, world, environment, say) for rank, world in enumerate(worlds)]

    @staticmethod
    def _start(
        module: str,
        rank: int,
        world: TrainingWorld | InferenceGroup,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> subprocess.Popen[str]:
        contract = {WORLD_VARIABLE: world.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: str(rank)}
        child = subprocess.Popen(
            lifeline.command(module),
            env={**os.environ, **environment, **contract},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",  # libraries write what they like
            start_new_session=True,  # a Ctrl-C reaches this process alone, which then ends the world in order
            umask=FOR_PODS,
        )
        assert child.stdout is not None
        threading.Thread(target=_relay, args=(child.stdout, rank, say), daemon=True).start()
        return child

    def wait(self, grace: float, stop: StopFlag) -> list[int]:
        """Return the exit codes once all have ended; they are asked to as often as `stop` is.

        When one fails the others are asked too, and get `grace` seconds.
        """
        asked, deadline = 0, math.inf
        while None in (codes := [child.poll() for child in self._children]):
            wishes = stop.requested.is_set() + stop.now.is_set()
            if any(code not in (None, 0) for code in codes):
                wishes, deadline = max(wishes, 1), min(deadline, time.monotonic() + grace)
            running = [child for child, code in zip(self._children, codes, strict=True) if code is None]
            if asked < wishes:
                asked += 1
                for child in running:
                    child.terminate()
            if time.monotonic() > deadline:
                for child in running:
                    os.killpg(child.pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        return [child.wait() for child in self._children]


def _relay(lines: IO[str], rank: int, say: Callable[[str], None]) -> None:
    with lines:
        for line in lines:
            with suppress(OSError):  # the terminal may be gone; who stopped reading would stop the process too
                say(f"[{rank}] {line.rstrip()}")


def stop_flag() -> StopFlag:
    """Take over, before any process starts, the signals that ask `arctic` to end; nohup(1) keeps its own."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return StopFlag().install(*([] if ignored else [signal.SIGHUP]))


def _read_report(path: Path) -> Report | None:
    try:
        return Report.model_validate_json(path.read_text())
    except (OSError, ValidationError, json.JSONDecodeError):
        return None


def _backoff_seconds(restart: Restart, failures: int) -> float:
    backoff = restart.backoff
    return min(parse_duration(backoff.initial) * float(backoff.factor) ** (failures - 1), parse_duration(backoff.max))


def run_training(manifest: dict[str, Any], volumes: Path, stop: StopFlag) -> int:
    """Run attempts until the training is done, refused, interrupted, at rest, late or out of restarts.

    Returns the exit code. One that rests at its `suspendAt` is interrupted: it is whole, and not done. Raises
    ClickException where another process runs it.
    """
    spec = ArcticTrainingSpec.model_validate(manifest["spec"])
    with alone(volumes, *identity(manifest)), _active_deadline(spec.active_deadline, stop) as late:
        code = _run_attempts(manifest, spec, volumes, stop)
    if late.is_set() and code == ExitCode.INTERRUPTED:
        click.echo(f"ActiveDeadlineExceeded: was not done within {spec.active_deadline} of its start", err=True)
        return _FAILED
    return code


@contextmanager
def _active_deadline(duration: str | None, stop: StopFlag) -> Iterator[threading.Event]:
    """Ask for an end once the time is over; the event says that it is."""
    late = threading.Event()

    def end() -> None:
        late.set()
        stop.request()

    if duration is None:
        yield late
        return
    timer = threading.Timer(parse_duration(duration), end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _run_attempts(manifest: dict[str, Any], spec: ArcticTrainingSpec, volumes: Path, stop: StopFlag) -> int:
    failures = 0
    while True:
        with tempfile.TemporaryDirectory(prefix="arctic-train-") as scratch:
            worlds = training_worlds(manifest, volumes, failures + 1, Path(scratch))
            processes = Processes(TRAINING_MODULE, worlds, spec.template)
            with announced(volumes, worlds[0]):
                codes = processes.wait(parse_duration(spec.checkpoint.grace_period), stop)
            reports = [_read_report(Path(world.termination_message)) for world in worlds]
        if _is_final(codes, stop) or _rests(reports):
            return _conclude(codes, reports)
        failures += 1
        if failures > spec.restart.limit:
            click.echo(f"gave up after {failures} failed attempts (spec.restart.limit: {spec.restart.limit})", err=True)
            return _FAILED
        wait = _backoff_seconds(spec.restart, failures)
        click.echo(f"attempt {failures} ended with {codes}; the next one starts in {wait:.0f} s", err=True)
        if stop.requested.wait(wait):
            return ExitCode.INTERRUPTED


def _is_final(codes: list[int], stop: StopFlag) -> bool:
    return stop.requested.is_set() or ExitCode.BAD_INPUT in codes or all(code == ExitCode.DONE for code in codes)


def _rests(reports: list[Report | None]) -> bool:
    """Whether the manifest lets the run go no further for now: another attempt would end at the same step."""
    return any(report is not None and report.reason == SUSPENDED for report in reports)


def _conclude(codes: list[int], reports: list[Report | None]) -> int:
    report = next((each for each in reports if each and each.message), reports[0])
    if report is not None:
        click.echo(f"{report.outcome}: {report.message}" if report.message else report.outcome)
        if report.export_uri:
            click.echo(f"weights: {report.export_uri}")
    if _rests(reports):
        click.echo("raise spec.suspendAt, or leave it out, and run it again to go on")
    codes = [ExitCode.INTERRUPTED if code == -signal.SIGTERM else code for code in codes]  # it had not yet begun
    final = (ExitCode.BAD_INPUT, ExitCode.INTERRUPTED, *codes)
    return next(code for code in final if code in codes)


def passed_over(manifest: dict[str, Any]) -> list[str]:
    """Return the fields of a manifest that only a cluster carries out."""
    found = {path: _field(manifest["spec"], path) for path in _ONLY_ON_A_CLUSTER}
    return [f"spec.{path}" for path, value in found.items() if value is not None and (path, value) != ("replicas", 1)]


def _field(spec: Any, path: str) -> Any:
    for step in path.split("."):
        spec = spec.get(step) if isinstance(spec, dict) else None
    return spec


def _load_to_run(file: Path, kind: str) -> dict[str, Any]:
    manifest = load_one(file, kind)
    if manifest["spec"].get("suspend"):
        raise ManifestError(f"{file}: spec.suspend: it is suspended: write false, or leave it out, to run it")
    if fields := passed_over(manifest):
        click.echo(f"only a cluster carries out {', '.join(fields)}", err=True)
    return manifest


file_option = click.option(
    "-f",
    "--filename",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Manifest.",
)
volumes_option = click.option(
    "--volumes",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder that holds a folder for each claim [default: $XDG_DATA_HOME/arctic/volumes].",
)


@click.command()
@file_option
@volumes_option
@dry_run_options
def train(file: Path, volumes: Path | None, dry_run: bool, tokens_per_second: float | None) -> None:
    """Run an ArcticTraining as local processes, and resume it if it ran before."""
    manifest, volumes = _load_to_run(file, "ArcticTraining"), volumes or default_volumes()
    supplies = _check_data(file, manifest, volumes)
    if dry_run:
        from arctic_cli.dry_run import describe_run  # which needs what is in this module

        click.echo(describe_run(file, manifest, volumes, supplies, tokens_per_second))
        return
    sys.exit(run_training(manifest, volumes, stop_flag()))


def run_folder_of(manifest: dict[str, Any], volumes: Path) -> Path:
    """Return the folder of a training in its store, which need not be there."""
    namespace, name = identity(manifest)
    volume = manifest["spec"]["checkpoint"]["volume"]
    store = volumes / volume["claimName"] / volume.get("path", "")
    return Path(run_folder(str(store), namespace, name, local_uid(namespace, name)))


def _check_data(file: Path, manifest: dict[str, Any], volumes: Path) -> Sequence[Supply]:
    """Refuse sources that can't be read, before any rank starts, and say of which there is too little.

    Returns what there is of each source that is trained on.
    """
    spec = ArcticTrainingSpec.model_validate(manifest["spec"])
    found = look_at_data(spec, local_mounts(spec.template, volumes), run_folder_of(manifest, volumes))
    if found.problems:
        raise ManifestError("\n".join(f"{file}: {problem}" for problem in found.problems))
    for note in found.notes:
        click.echo(f"{file}: {note}", err=True)
    return found.supplies


@click.command()
@file_option
@volumes_option
@click.option(
    "--secrets",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder that holds a folder for each Secret, a file a value [default: $XDG_DATA_HOME/arctic/secrets].",
)
def serve(file: Path, volumes: Path | None, secrets: Path | None) -> None:
    """Run one group of an ArcticInference as local processes, on loopback."""
    manifest = _load_to_run(file, "ArcticInference")
    spec = ArcticInferenceSpec.model_validate(manifest["spec"])
    if spec.engine.name == "nim":
        raise ManifestError(
            f"{file}: spec.engine.name: nim is a container of NVIDIA's, which needs a cluster: "
            "kubectl apply it, or name another engine"
        )
    stop = stop_flag()
    with tempfile.TemporaryDirectory(prefix="arctic-serve-") as scratch:
        groups = inference_groups(manifest, volumes or default_volumes(), Path(scratch), secrets)
        click.echo(f"OpenAI-compatible API: http://{LOOPBACK}:{groups[0].ports.http}/v1 (once ready)")
        processes = Processes(INFERENCE_MODULE, groups, spec.template)
        codes = processes.wait(parse_duration(spec.rollout.drain_timeout), stop)
        for report in filter(None, (_read_report(Path(group.termination_message)) for group in groups)):
            if report.message:
                click.echo(f"{report.outcome}: {report.message}", err=True)
    sys.exit(max(codes, key=abs))
