"""Other engines as peers: each a process in its own environment that measures when it is asked to."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from peers import interpreter

from arctic_cluster import environment
from benchmarks.compiled import HERE


class Peer:
    """A loaded model."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self._name = name
        self._process = process
        self._read()

    def decode(self, sequences: int, threads: int) -> float:
        """Return tokens a second of so many sequences that are answered together, greedily."""
        return float(self._ask(f"decode {sequences} {threads}"))

    def prefill(self, tokens: int, threads: int) -> float:
        """Return tokens a second of one prompt."""
        return float(self._ask(f"prefill {tokens} {threads}"))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._name} ended; see above")
        return line


@contextmanager
def llama_cpp(model: Path, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[Peer]:
    """Load a GGUF, whose sequences go on from `prompts`, by `tokens` each; builds llama.cpp where it is missing."""
    with _started("llama.cpp", interpreter("llama-cpp"), "llama_decode.py", model, prompts, tokens) as peer:
        yield peer


@contextmanager
def vllm(model: Path, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[Peer | None]:
    """The same of a checkpoint in vLLM; None where its environment is not there (`arctic cluster environment vllm`)."""
    made = environment.made_for_engines().get("vllm")
    if made is None:
        yield None
        return
    with _started("vLLM", made / "bin" / "python3", "vllm_decode.py", model, prompts, tokens) as peer:
        yield peer


def requantised(gguf: Path, file: Path) -> Path:
    """Return `file`, which llama.cpp itself makes of a GGUF, in Q8_0, where it is not there."""
    if not file.exists():
        beside = file.with_suffix(".part")
        subprocess.run([interpreter("llama-cpp"), HERE / "llama_quantize.py", gguf, beside], check=True)
        beside.rename(file)
    return file


@contextmanager
def _started(
    name: str, python: Path, script: str, model: Path, prompts: Sequence[Sequence[int]], tokens: int
) -> Iterator[Peer]:
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "prompts.npy"
        np.save(asked, np.array(prompts))
        command = [str(python), str(HERE / script), str(model), str(asked), str(tokens)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Peer(name, process)
