"""Our forward pass against llama.cpp's on random checkpoints of unusual sizes, in fp32."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import CASES, GREEDY_TOKENS, KEPT, KEPT_CASES, ROUNDING, greedy, logits_of, prompt_of, random_checkpoint

Answer = dict[str, Any]


@pytest.fixture
def ask(llama_cpp: list[str], tmp_path: Path) -> Callable[[Path, list[int]], Answer]:
    """Asks llama.cpp about a checkpoint."""

    def run(checkpoint: Path, prompt: list[int]) -> Answer:
        np.save(tmp_path / "prompt.npy", prompt)
        out = tmp_path / "out.npz"
        command = [*llama_cpp, str(checkpoint), str(tmp_path / "prompt.npy"), str(GREEDY_TOKENS), str(out)]
        subprocess.run(command, check=True)
        return dict(np.load(out))

    return run


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_those_of_llama_cpp(
    case: str, ask: Callable[[Path, list[int]], Answer], tmp_path: Path
) -> None:
    model = random_checkpoint(case, tmp_path / "checkpoint")
    prompt = prompt_of(model)
    theirs, logits = ask(tmp_path / "checkpoint", prompt), logits_of(model, prompt)
    assert np.abs(logits - theirs["logits"]).max() <= ROUNDING * np.abs(logits).max()
    assert greedy(model, prompt) == theirs["greedy"].tolist()


def test_the_kept_answers_are_llama_cpps(ask: Callable[[Path, list[int]], Answer], tmp_path: Path) -> None:
    answers = {}
    for case in KEPT_CASES:
        theirs = ask(tmp_path / case, prompt_of(random_checkpoint(case, tmp_path / case)))
        answers[case] = {
            "logits": [round(float(logit), 7) for logit in theirs["logits"][-1]],
            "greedy": theirs["greedy"].tolist(),
        }
    said = json.dumps(answers, indent=1) + "\n"
    if not KEPT.exists():
        KEPT.write_text(said)
        pytest.fail(f"{KEPT.name} was missing and is written: look at it, and commit it")
    assert KEPT.read_text() == said, f"delete {KEPT.name} and run this again"
