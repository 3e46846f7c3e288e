"""vLLM's speed, on demand; runs in vLLM's own environment, where this project's plugin makes it know Arctic.

    python vllm_decode.py FOLDER PROMPTS.npy TOKENS

Each line on standard input is `decode SEQUENCES THREADS`; each is answered by a line with tokens a second. The prompts
are [sequences, tokens]. vLLM takes all cores that it may use, whatever is asked, and computes in bf16.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np


def main(folder: str, prompts: np.ndarray, count: int) -> None:
    """See the module's docstring."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM says is no answer
    cores = sorted(os.sched_getaffinity(0))
    os.environ |= {
        # Its own threads on all cores, and nothing between it and who asks.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams

    model = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        kv_cache_memory_bytes=256 << 20,
        max_model_len=prompts.shape[1] + count + 1,
        max_num_seqs=len(prompts),
        enable_prefix_caching=False,
        enforce_eager=True,  # compiled for CPUs, its experts give wrong tokens
        seed=0,
    )

    def seconds(sequences: int, tokens: int) -> float:
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts[:sequences].tolist()]
        start = time.perf_counter()
        model.generate(asked, sampling, use_tqdm=False)
        return time.perf_counter() - start

    seconds(1, 2)  # how it draws is compiled when first asked for
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        _, sequences, _ = line.split()
        # The prompts and the first tokens are left out, as with the others.
        spent = seconds(int(sequences), count) - seconds(int(sequences), 1)
        print(int(sequences) * (count - 1) / spent, file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]))
