"""llama.cpp as a peer: a process in its own environment that measures when it is asked to."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.compiled import HERE

PEERS = HERE.parent / "tests" / "support" / "peers.py"


class LlamaCpp:
    """A loaded model."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
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
            sys.exit("llama.cpp ended; see above")
        return line


@contextmanager
def llama_cpp(model: Path, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[LlamaCpp]:
    """Load a GGUF, whose sequences go on from `prompts`, by `tokens` each; builds llama.cpp where it is missing."""
    built = subprocess.run([sys.executable, PEERS, "llama-cpp"], check=True, stdout=subprocess.PIPE, text=True)
    python = built.stdout.strip().splitlines()[-1]
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "prompts.npy"
        np.save(asked, np.array(prompts))
        command = [python, str(HERE / "llama_decode.py"), str(model), str(asked), str(tokens)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield LlamaCpp(process)
