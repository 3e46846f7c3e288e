"""Faults against a training that runs as local processes, what each of them costs, and whether the end is the same.

`arctic train` runs the world of two pods; a seed decides which fault comes when. What a fault costs is the time until
the run is past the step that it had reached before.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from safetensors import safe_open

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE
from arctic_cluster.paths import CORPUS, STORE
from arctic_model.config import ArcticConfig

MARK = "ARCTIC_TEST_RUN"
PATIENCE = 300.0
RANK, RANK_0, NODE = "a rank is killed", "rank 0 is killed", "a node goes down"
TRUNCATED, DISK = "the newest checkpoint is truncated", "the disk is full"
CHEAP = (RANK, RANK_0, NODE, TRUNCATED, DISK)
"""Kinds that cost a run no more than a start, and differ in what they break."""
STARTING = 0.2
"""Share of faults that hit an attempt while it starts."""
MOST_STARTING_SECONDS = 8.0
METRIC = re.compile(r"^(arctic_training_\w+)(?:{[^}]*})? (\S+)$", re.MULTILINE)


MOUNTED = "/var/lib/arctic/corpus"
LINES = (
    ("books", "general", "it was the best of {} times, it was the worst of {} times"),
    ("programs", "code", "x{} = f({})"),
)


def small_training(corpus: Path, folder: str, steps: int, every: int, tokens_per_step: int = 1024) -> dict[str, Any]:
    """Return the manifest of a training of two pods that starts fast and makes many steps; its text is written here.

    Args:
        corpus: folder of the corpus' claim.
        folder: in it, for the text.
        steps: in two stages.
        every: steps between checkpoints.
        tokens_per_step: how large a step is.
    """
    for name, _, line in LINES:
        (corpus / folder / name).mkdir(parents=True)
        for i in range(30):
            text = "\n".join(line.format(i * 7 + j, j) for j in range(60))
            (corpus / folder / name / f"{i:02}.txt").write_text(text)
    config = ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=3,
        moe_layer_frequency=2,
        num_local_experts=4,
        max_position_embeddings=64,
        router_aux_loss_coef=0.1,
    )
    stage = {
        "tokens": steps // 2 * tokens_per_step,
        "learningRate": {"peak": 3e-3, "warmupTokens": tokens_per_step},
        "sequenceLength": 32,
        "mixture": {"books": 0.6, "programs": 0.4},
    }
    return {
        "apiVersion": "arctic.dev/v1alpha1",
        "kind": "ArcticTraining",
        "metadata": {"name": "faults"},
        "spec": {
            "model": {"config": config.to_dict()},
            "tokenizer": {"train": {"vocabSize": 300}},
            "data": {
                "sources": [
                    {"name": name, "category": category, "uri": f"file://{MOUNTED}/{folder}/{name}"}
                    for name, category, _ in LINES
                ]
            },
            "curriculum": {"stages": [{"name": "first", **stage}, {"name": "second", **stage}]},
            "batch": {"tokensPerStep": tokens_per_step, "microBatchSize": 16},
            "parallelism": {"nodes": 2, "expertParallel": 2},
            "checkpoint": {"volume": {"claimName": STORE}, "every": {"steps": every}, "keep": 2},
            "template": {"volumes": [{"claimName": CORPUS, "mountPath": MOUNTED}]},
            "restart": {"limit": 1000, "backoff": {"initial": "1s", "factor": 1, "max": "1s"}},
        },
    }


@dataclass(frozen=True)
class Process:
    """One process of a run."""

    pid: int
    arguments: list[str]
    environment: dict[str, str]

    @property
    def is_rank(self) -> bool:
        """Whether it computes; what starts the ranks has their name among its arguments too."""
        return "arctic_workers.training.rank" in self.arguments and "RANK" in self.environment

    @property
    def is_supervisor(self) -> bool:
        """Whether it is what a pod's container would begin with."""
        return self.arguments[-1:] == ["arctic_workers.training"]

    @property
    def pod(self) -> str | None:
        """The pod that it belongs to; None for what starts the pods."""
        return self.environment.get(NODE_RANK_VARIABLE)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, if it is there still."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class LocalRun:
    """`arctic train` on a manifest, started again when it has been killed itself.

    Args:
        manifest: of the training.
        volumes: folder of the claims.
        scratch: folder for the manifest and the log.
    """

    def __init__(self, manifest: dict[str, Any], volumes: Path, scratch: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._file = scratch / "training.json"
        self._file.write_text(json.dumps(manifest))
        self._volumes = volumes
        self.log = scratch / "log"
        self.folder: Path | None = None
        """The run's, once a pod has been seen."""
        self._command: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Run `arctic train`, again if it ran before."""
        arctic = Path(sys.executable).with_name("arctic")
        command = [str(arctic), "train", "-f", str(self._file), "--volumes", str(self._volumes)]
        with self.log.open("ab") as log:
            self._command = subprocess.Popen(
                command, env=os.environ | {MARK: self._mark}, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def code(self) -> int | None:
        """Exit code of `arctic train`, None while it runs."""
        assert self._command is not None
        return self._command.poll()

    def end(self) -> None:
        """Kill all that is left."""
        for process in self.processes():
            process.kill()
        assert self._command is not None
        self._command.wait()

    def processes(self) -> list[Process]:
        """Return what there is of this run, by process id."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if f"{MARK}={self._mark}".encode() in environment:
                    pairs = (each.decode(errors="replace").partition("=") for each in environment if each)
                    arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
                    found.append(Process(int(folder.name), arguments, {key: value for key, _, value in pairs}))
        return sorted(found, key=lambda process: process.pid)

    def metrics(self) -> dict[str, float]:
        """Return what pod 0 says of the training; nothing while it does not."""
        first = next((p for p in self.processes() if p.is_supervisor and p.pod == "0"), None)
        if first is None:
            return {}
        world = json.loads(first.environment[WORLD_VARIABLE])
        self.folder = Path(world["runFolder"])
        with suppress(OSError), urlopen(f"http://127.0.0.1:{world['ports']['metrics']}/metrics", timeout=5) as answer:
            return {name: float(value) for name, value in METRIC.findall(answer.read().decode())}
        return {}

    def epoch(self) -> int:
        """Return the epoch of the present attempt, 0 while there is none."""
        first = next((process for process in self.processes() if process.is_supervisor), None)
        return int(json.loads(first.environment[WORLD_VARIABLE])["epoch"]) if first else 0

    def step(self) -> int:
        """Return how many steps the present attempt knows of, 0 while it starts."""
        return int(self.metrics().get("arctic_training_steps_total", 0))

    def begin(self) -> float:
        """Wait for the first step; return the seconds since the start of this process."""
        start = time.monotonic()
        while self.step() == 0:
            assert self.code is None, f"the run ended with {self.code}: see {self.log}"
            time.sleep(0.1)
        return time.monotonic() - start

    def finish(self) -> dict[str, float]:
        """Wait for the end, which has to be a good one; return the last metrics that were seen."""
        last: dict[str, float] = {}
        while self.code is None:
            last = self.metrics() or last
            time.sleep(0.1)
        assert self.code == 0, f"the run ended with {self.code}: see {self.log}"
        return last

    def checkpoints(self) -> list[Path]:
        """Return the committed checkpoints, the newest first."""
        return sorted((self.folder or Path("/nowhere")).glob("checkpoints/step-*"), reverse=True)


@dataclass(frozen=True)
class Fault:
    """One fault and what it cost."""

    kind: str
    step: int
    """That the run had come to."""
    seconds_lost: float


class Campaign:
    """Faults in an order and at moments that the seed alone decides; what exactly they hit depends on what is there.

    Args:
        run: the training.
        seed: of the order, and of the moments.
        steps: over which the faults are spread.
        disk: fills the volume for as long as its context lasts; None where that is not possible.
        say: told of each fault.
        only: the kinds that are inflicted; all by default.
    """

    def __init__(
        self,
        run: LocalRun,
        seed: int,
        steps: int,
        disk: Callable[[], Any] | None,
        say: Callable[[str], None] = print,
        only: Collection[str] | None = None,
    ) -> None:
        self._run, self._random, self._say, self._disk = run, random.Random(seed), say, disk
        self._steps = steps
        self._hit_epoch = 0
        self._reached = 0
        kinds: dict[str, Callable[[], float]] = {
            RANK: self._kill_a_rank,
            RANK_0: self._kill_rank_0,
            "a pod is killed": self._kill_a_pod,
            NODE: self._lose_a_node,
            "everything goes down": self._lose_all,
            "a rank hangs": self._hang_a_rank,
            TRUNCATED: self._truncate,
            DISK: self._fill,
        }
        possible = set(kinds) - ({DISK} if disk is None else set())
        self.kinds = {name: kinds[name] for name in (possible if only is None else possible & set(only))}

    def inflict(self, faults: int) -> Iterator[Fault]:
        """Inflict so many faults, each kind once before any comes again; yields each once the run is past it."""
        order: list[str] = []
        for number in range(faults):
            order = order or self._random.sample(sorted(self.kinds), len(self.kinds))
            kind = order.pop()
            self._wait_for_the_moment((number + self._random.random()) * self._steps / faults)
            hit = self.kinds[kind]()
            before, epoch = self._reached, 0 if kind == DISK else self._hit_epoch
            self._wait_for(partial(self._is_past, before, epoch), f"the run is past step {before}")
            fault = Fault(kind, before, time.monotonic() - hit)
            self._say(f"{kind} at step {before}: {fault.seconds_lost:.1f} s lost")
            yield fault

    def _wait_for_the_moment(self, step: float) -> None:
        """Wait for a step, or for none: what was hit last still starts then."""
        if self._random.random() < STARTING:
            time.sleep(self._random.uniform(0, MOST_STARTING_SECONDS))
            return
        self._wait_for(lambda: self._step() >= step, f"step {step:.0f}")
        time.sleep(self._random.uniform(0, 0.5))

    def _is_past(self, step: int, epoch: int) -> bool:
        """Return whether a later attempt has come further: a stopped rank may go on for its stack to be written."""
        return self._step() > step and self._run.epoch() > epoch

    def _step(self) -> int:
        step = self._run.step()
        self._reached = max(self._reached, step)
        return step

    def _wait_for(self, there: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not there():
            if self._run.code is not None:
                raise AssertionError(f"the run ended with {self._run.code} before {what}: see {self._run.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE:.0f} s: {what}: see {self._run.log}")
            time.sleep(0.1)

    def _some(self, among: Callable[[Process], bool]) -> list[Process]:
        """Return the processes of a kind, once there are any."""
        found: list[Process] = []

        def look() -> bool:
            found[:] = [process for process in self._run.processes() if among(process)]
            return bool(found)

        self._wait_for(look, "there is something to hit")
        return found

    def _strike(self, processes: list[Process], number: signal.Signals = signal.SIGKILL) -> float:
        """Send a signal to some processes; return when."""
        self._step()
        self._hit_epoch = self._run.epoch()
        hit = time.monotonic()
        for process in processes:
            process.kill(number)
        return hit

    # --- the faults: each returns when it hit

    def _kill_a_rank(self) -> float:
        return self._strike([self._random.choice(self._some(lambda process: process.is_rank))])

    def _kill_rank_0(self) -> float:
        return self._strike(self._some(lambda process: process.is_rank and process.environment["RANK"] == "0"))

    def _kill_a_pod(self) -> float:
        return self._strike([self._random.choice(self._some(lambda process: process.is_supervisor))])

    def _lose_a_node(self) -> float:
        pod = self._random.choice("01")
        return self._strike(self._some(lambda process: process.pod == pod))

    def _lose_all(self) -> float:
        hit = self._strike(self._run.processes())
        while self._run.processes() or self._run.code is None:
            time.sleep(0.05)
        self._run.start()
        return hit

    def _hang_a_rank(self) -> float:
        """Stop a rank once it makes steps: one that stops while it starts holds up nobody who waits in a step."""
        self._wait_for(lambda: self._step() > 0, "a step is made")
        return self._strike([self._random.choice(self._some(lambda process: process.is_rank))], signal.SIGSTOP)

    def _truncate(self) -> float:
        self._wait_for(lambda: self._step() > 0 and len(self._run.checkpoints()) > 1, "there are two checkpoints")
        shard = self._random.choice(sorted(self._run.checkpoints()[0].glob("*.safetensors")))
        os.truncate(shard, shard.stat().st_size // 2)
        return self._kill_rank_0()

    def _fill(self) -> float:
        """Leave no room until a checkpoint could not be written; what comes of that counts from then on."""
        assert self._disk is not None
        seen = self._run.log.stat().st_size

        def noticed() -> bool:
            self._step()
            with self._run.log.open() as log:
                log.seek(seen)
                return "there is no room left" in log.read()

        with self._disk():
            self._wait_for(noticed, "a full disk is noticed")
            return time.monotonic()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[], Any]]:
    """Mount a small file system on a folder; gives what fills it for as long as a context lasts. Needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)

    @contextmanager
    def full() -> Iterator[None]:
        filler = folder / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 20))
            yield
        finally:
            filler.unlink()

    try:
        yield full
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def same_end(one: Path, other: Path) -> bool:
    """Return whether two runs ended with the same bits: the last checkpoint, and the export."""
    last = [max(run.glob("checkpoints/step-*")) for run in (one, other)]
    if last[0].name != last[1].name:
        return False
    if {path.name for path in last[0].glob("*.safetensors")} != {path.name for path in last[1].glob("*.safetensors")}:
        return False
    return all(_same_tensors(shard, last[1] / shard.name) for shard in last[0].glob("*.safetensors")) and all(
        file.read_bytes() == (other / "export" / file.name).read_bytes()
        for file in (one / "export").glob("*.safetensors")
    )


def _same_tensors(one: Path, other: Path) -> bool:
    with safe_open(one, "pt") as first, safe_open(other, "pt") as second:
        return set(first.keys()) == set(second.keys()) and all(
            first.get_tensor(name).equal(second.get_tensor(name))
            for name in first.keys()  # noqa: SIM118 (no mapping)
        )
