"""The native engine as benchmarks run it: alone in this process, or whole, as a pod's process behind its HTTP API."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, InferenceGroup
from arctic_cli.local import inference_groups
from arctic_workers.control.ports import free_ports
from arctic_workers.inference.engine import Request, Sampling
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.group import Rank, bring_up
from arctic_workers.inference.engines.native.plan import plan_group
from benchmarks.compiled import compiled

Result = TypeVar("Result")


def group_of(model: Path, scratch: Path, **spec: Any) -> list[InferenceGroup]:
    """Return what the pods of a group that serves a folder are told; `spec` is what the manifest says besides."""
    [port] = free_ports(1)
    manifest = {
        "metadata": {"name": "benchmark"},
        "spec": {"model": {"uri": model.as_uri()}, "service": {"port": port}, **spec},
    }
    return inference_groups(manifest, scratch, scratch)


class InProcess:
    """An engine of one process, on an event loop of its own."""

    def __init__(self, group: InferenceGroup) -> None:
        plan = plan_group(group)

        def load(progress: Callable[[float], None]) -> Rank:
            self._rank = bring_up(plan, group, 0, on_loss=sys.exit, on_stop=lambda: None, progress=progress)
            return self._rank

        self.engine = NativeEngine(plan, load, beat=lambda: None, on_failure=lambda error: sys.exit(str(error)))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.wait(self.engine.start())

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the engine's loop to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def decode(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        """Return tokens a second while all of the sequences are being answered, greedily."""
        times = self.wait(self._times(prompts, count))
        return rate_of(times)

    def prefill(self, prompt: Sequence[int]) -> float:
        """Return tokens of a prompt a second, until its first token is there."""
        start = time.perf_counter()
        [[first]] = self.wait(self._times([prompt], 1))
        return len(prompt) / (first - start)

    def seconds_by_part(self, prompts: Sequence[Sequence[int]], count: int) -> dict[str, float]:
        """Return the seconds of each part of a step that decodes all of the sequences, and of what is around them."""
        seconds = self._rank.runner.seconds
        start = seconds()
        self.wait(self._times(prompts, 1))
        prompts_read = seconds()
        [times, *_] = self.wait(self._times(prompts, count))
        end = seconds()
        # Prompts were read once more.
        parts = {name: (end[name] - 2 * prompts_read[name] + start[name]) / (count - 1) for name in start}
        step = (times[-1] - times[0]) / (count - 1)
        return {**parts, "sampling, scheduling, handing out": step - sum(parts.values()), "a step": step}

    def answers(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Return the greedy tokens that follow prompts, all asked for at once."""

        async def one(prompt: Sequence[int]) -> list[int]:
            request = Request(tuple(prompt), Sampling(count, temperature=0.0))
            return [output.token async for output in self.engine.generate(request)]

        async def all_of_them() -> list[list[int]]:
            return list(await asyncio.gather(*map(one, prompts)))

        return self.wait(all_of_them())

    def stop(self) -> None:
        """End the engine."""
        self.wait(self.engine.stop())

    async def _times(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[float]]:
        async def one(prompt: Sequence[int]) -> list[float]:
            request = Request(tuple(prompt), Sampling(count, temperature=0.0))
            return [time.perf_counter() async for _ in self.engine.generate(request)]

        return list(await asyncio.gather(*map(one, prompts)))


def rate_of(times: Sequence[Sequence[float]]) -> float:
    """Return tokens a second between the last sequence's first token and the first sequence's last (as load.cpp)."""
    start, end = max(one[0] for one in times), min(one[-1] for one in times)
    return sum(start < at <= end for one in times for at in one) / (end - start)


class Served:
    """A group of one pod behind its HTTP API."""

    def __init__(self, group: InferenceGroup, scratch: Path) -> None:
        self._group = group
        self._scratch = scratch

    def decode(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        """Return tokens a second while all clients are being answered, streamed and greedy."""
        bodies = self._scratch / "bodies.jsonl"
        fixed = {"model": self._group.served_name, "max_tokens": count, "temperature": 0, "stream": True}
        bodies.write_text("".join(json.dumps({"prompt": list(prompt), **fixed}) + "\n" for prompt in prompts))
        command = [str(compiled("load.cpp")), str(self._group.ports.http), str(bodies)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        tokens, seconds, _ = (float(number) for number in said.split())
        return tokens / seconds


@contextmanager
def served(group: InferenceGroup) -> Iterator[Served]:
    """Start a pod's process, and end it."""
    told = {WORLD_VARIABLE: group.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: "0"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "arctic_workers.inference"], env=os.environ | told, stderr=file, stdout=file
            )
        try:
            while not _answers(f"http://127.0.0.1:{group.ports.http}/health"):
                if process.poll() is not None:
                    sys.exit(f"the engine ended while it loaded ({process.returncode}):\n{log.read_text()}")
                time.sleep(0.2)
            yield Served(group, Path(folder))
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
