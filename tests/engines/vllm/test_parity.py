"""vLLM's forward pass, by our plugin, against ours on random checkpoints of unusual sizes, in fp32.

Run in the environment of vLLM (its CPU build, or on a GPU): each case is a vLLM of its own, in processes of its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from parity import checkpoint_of, logits_of, prompt_of

RUNNER = Path(__file__).with_name("vllm_runner.py")
NEAR_TOP = 1e-3
"""How far below our top logit the token may be, by our logits, that vLLM finds likeliest."""
GREEDY_TOKENS = 24

# Heads are of the sizes that vLLM's attention for CPUs has: 32, 64, 80, 96 and some larger ones.
THREE_GROUPS = {
    "hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 5,
    "intermediate_size": 51, "num_local_experts": 5, "num_experts_per_tok": 2, "vocab_size": 131,
    "moe_layer_frequency": 2,
}  # fmt: skip
TWO_GROUPS = {
    "hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 4,
    "intermediate_size": 54, "num_local_experts": 7, "num_experts_per_tok": 2, "vocab_size": 257,
    "rope_theta": 100000.0, "rms_norm_eps": 1e-3,
}  # fmt: skip
NO_KERNEL = {
    "hidden_size": 240, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 3,
    "intermediate_size": 38, "num_local_experts": 7, "num_experts_per_tok": 3, "vocab_size": 97,
}  # fmt: skip
YARN = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}
LINEAR = {"rope_scaling": {"type": "linear", "factor": 3.0}}


class Case(NamedTuple):
    """A checkpoint's sizes, and how vLLM shares it out."""

    sizes: dict[str, Any]
    arguments: dict[str, Any]


CASES = {
    "dense layers between those with experts": Case(THREE_GROUPS, {}),
    "the same over two pipeline ranks": Case(THREE_GROUPS, {"pipeline_parallel_size": 2}),
    "two tensor ranks": Case(TWO_GROUPS, {"tensor_parallel_size": 2}),
    "two tensor ranks by two pipeline ranks": Case(
        {**TWO_GROUPS, "moe_layer_frequency": 2}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    ),
    "experts shared out among two ranks": Case(TWO_GROUPS, {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
    "a hidden size without a kernel": Case(NO_KERNEL, {}),
    "yarn positions and a window": Case({**TWO_GROUPS, **YARN, "sliding_window": 40}, {}),
    "linear positions, in chunks": Case({**TWO_GROUPS, **LINEAR}, {"max_num_batched_tokens": 16}),
}


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[Path, list[int], dict[str, Any]], dict[str, Any]]:
    """Asks vLLM about a checkpoint."""

    def run(checkpoint: Path, prompt: list[int], arguments: dict[str, Any]) -> dict[str, Any]:
        np.save(tmp_path / "prompt.npy", prompt)
        out = tmp_path / "out.npz"
        files = [str(checkpoint), str(tmp_path / "prompt.npy"), str(GREEDY_TOKENS), str(out)]
        subprocess.run([sys.executable, str(RUNNER), *files, json.dumps(arguments)], check=True)
        return dict(np.load(out))

    return run


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_vllm_finds_the_tokens_likeliest_that_we_do(
    case: str, ask: Callable[[Path, list[int], dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    sizes, arguments = CASES[case]
    model = checkpoint_of(sizes, tmp_path / "checkpoint")
    prompt = prompt_of(model)
    theirs = ask(tmp_path / "checkpoint", prompt, arguments)
    # What vLLM goes on with is forced upon our model too: one near-tie must not decide about all that follows it.
    ours_TV = logits_of(model, prompt + theirs["greedy"].tolist())[:-1]
    chosen_T = np.concatenate((theirs["logprobs"].argmax(-1), theirs["greedy"]))
    gaps_T = ours_TV.max(-1) - np.take_along_axis(ours_TV, chosen_T[:, None], axis=-1)[:, 0]
    logprobs_TV = ours_TV - np.log(np.exp(ours_TV).sum(-1, keepdims=True))
    difference = np.abs(logprobs_TV[: len(theirs["logprobs"])] - theirs["logprobs"]).max()
    print(f"{case}: at most {gaps_T.max():.1e} below the top, logprobs differ by {difference:.1e}")
    assert gaps_T.max() <= NEAR_TOP
    assert difference <= NEAR_TOP
