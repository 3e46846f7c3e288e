"""llama.cpp's speed, on demand; runs in the environment of `tests/support/peers.py` with nothing of this project.

    python llama_decode.py MODEL.gguf PROMPTS.npy TOKENS

Each line on standard input is `decode SEQUENCES THREADS` or `prefill TOKENS THREADS`; each is answered by a line with
tokens a second. `PROMPTS.npy` is [sequences, tokens].
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import llama_cpp
import numpy as np


class Model:
    """A loaded GGUF."""

    def __init__(self, path: str, prompts: np.ndarray, count: int) -> None:
        llama_cpp.llama_backend_init()
        silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(silent, None)
        self._silent = silent
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            sys.exit(f"llama.cpp does not load {path}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._prompts = prompts
        self._count = count

    def decode(self, sequences: int, threads: int) -> float:
        """Tokens a second of so many sequences, greedy, after their prompts; the first step is left out."""
        width = self._prompts.shape[1]
        context = self._context(sequences, width + self._count + 1, sequences * width, threads)
        batch = llama_cpp.llama_batch_init(sequences * width, 0, 1)
        for sequence in range(sequences):
            for position in range(width):
                index = sequence * width + position
                self._set(batch, index, int(self._prompts[sequence, position]), position, sequence)
                batch.logits[index] = position == width - 1
        batch.n_tokens = sequences * width
        self._run(context, batch)
        tokens = self._greedy(context, [(sequence + 1) * width - 1 for sequence in range(sequences)])
        start = 0.0
        for step in range(self._count):
            if step == 1:
                start = time.perf_counter()
            for sequence, token in enumerate(tokens):
                self._set(batch, sequence, token, width + step, sequence)
                batch.logits[sequence] = True
            batch.n_tokens = sequences
            self._run(context, batch)
            tokens = self._greedy(context, range(sequences))
        seconds = time.perf_counter() - start
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return sequences * (self._count - 1) / seconds

    def prefill(self, count: int, threads: int) -> float:
        """Tokens a second of one prompt, whose last token's logits are computed."""
        context = self._context(1, count, count, threads)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        tokens = np.resize(self._prompts.ravel(), count)
        for index in range(count):
            self._set(batch, index, int(tokens[index]), index, 0)
            batch.logits[index] = index == count - 1
        batch.n_tokens = count
        start = time.perf_counter()
        self._run(context, batch)
        self._greedy(context, [count - 1])
        seconds = time.perf_counter() - start
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return count / seconds

    def _context(self, sequences: int, length: int, batch: int, threads: int) -> object:
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx = sequences * -(-length // 256) * 256
        asked.n_batch = asked.n_ubatch = batch
        asked.n_seq_max = sequences
        asked.n_threads = asked.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(self._model, asked)
        if not context:
            sys.exit("llama.cpp makes no context")
        return context

    def _set(self, batch: llama_cpp.llama_batch, index: int, token: int, position: int, sequence: int) -> None:
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence

    def _run(self, context: object, batch: llama_cpp.llama_batch) -> None:
        if llama_cpp.llama_decode(context, batch):
            sys.exit("llama.cpp fails to decode")

    def _greedy(self, context: object, rows: Iterable[int]) -> list[int]:
        size = self._vocabulary
        logits = (llama_cpp.llama_get_logits_ith(context, row) for row in rows)
        return [int(np.ctypeslib.as_array(one, shape=(size,)).argmax()) for one in logits]


def main() -> None:
    """See the module's docstring."""
    model = Model(sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]))
    print("ready", flush=True)
    for line in sys.stdin:
        what, count, threads = line.split()
        measure = {"decode": model.decode, "prefill": model.prefill}[what]
        print(measure(int(count), int(threads)), flush=True)


if __name__ == "__main__":
    main()
