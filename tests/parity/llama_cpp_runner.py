"""Runs a GGUF file in llama.cpp; needs the packages of `peers.py` and nothing of this project.

    python llama_cpp_runner.py FILE PROMPT.npy TOKENS OUT.npz [TEXT]

stores `logits` [T, V] of the prompt's tokens, `greedy`, the TOKENS tokens that follow, and `words`, the tokens of TEXT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main(file: Path, prompt: Path, count: int, out: Path, text: str = "") -> None:
    """See the module's docstring."""
    tokens = np.load(prompt).tolist()
    model = llama_cpp.Llama(
        str(file),
        n_ctx=len(tokens) + count,
        n_batch=len(tokens),
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        # The cache is in half precision by default, and flash attention rounds to it.
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    model.eval(tokens)
    logits = model.scores[: len(tokens)].copy()
    greedy = [int(logits[-1].argmax())]
    while len(greedy) < count:
        model.eval(greedy[-1:])
        greedy.append(int(model.scores[model.n_tokens - 1].argmax()))
    words = model.tokenize(text.encode(), add_bos=False, special=True) if text else []
    np.savez(out, logits=logits, greedy=np.array(greedy), words=np.array(words))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:])
