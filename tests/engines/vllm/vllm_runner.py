"""Runs a checkpoint in vLLM; needs an environment with vLLM and this project's plugin in it.

    python vllm_runner.py FOLDER PROMPT.npy TOKENS OUT.npz [ARGUMENTS]

stores `logprobs` [T-1, V], after each of the prompt's tokens but the last, and `greedy`, the TOKENS tokens that follow.
ARGUMENTS are more of vLLM's own, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

# One thread a rank, wherever the kernel puts it; what vLLM would choose wants a NUMA node a rank.
os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def execution(pipeline: int) -> dict[str, object]:
    """Nothing is compiled. On CPUs a later pipeline rank has no buffers unless vLLM believes that something is."""
    if pipeline > 1:
        return {"compilation_config": {"mode": "DYNAMO_TRACE_ONCE", "backend": "eager"}}
    return {"enforce_eager": True}


def main(folder: Path, prompt: Path, count: int, out: Path, arguments: str = "{}") -> None:
    """See the module's docstring."""
    from vllm import LLM, SamplingParams

    more = json.loads(arguments)
    tokens = np.load(prompt).tolist()
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    model = LLM(
        str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        kv_cache_memory_bytes=32 << 20,
        max_model_len=len(tokens) + count,
        max_num_seqs=2,
        max_logprobs=vocab,
        seed=0,
        **execution(more.get("pipeline_parallel_size", 1)),
        **more,
    )
    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False, prompt_logprobs=vocab)
    answer = model.generate({"prompt_token_ids": tokens}, sampling, use_tqdm=False)[0]
    rows = [[position[token].logprob for token in range(vocab)] for position in answer.prompt_logprobs[1:]]
    np.savez(out, logprobs=np.array(rows, dtype=np.float32), greedy=np.array(answer.outputs[0].token_ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:])
