"""Our forward pass against llama.cpp's on random checkpoints of unusual sizes, in fp32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import CASES, GREEDY_TOKENS, KEPT, KEPT_CASES, ROUNDING, greedy, logits_of, prompt_of, random_checkpoint

from arctic_model.gguf.writer import export_gguf
from arctic_model.model import ArcticModel

Ask = Callable[..., dict[str, Any]]


def answer(ask: Ask, case: str, folder: Path) -> tuple[ArcticModel, list[int], dict[str, Any]]:
    """Let both know a random checkpoint; returns ours, the prompt, and what llama.cpp says."""
    model = random_checkpoint(case, folder)
    prompt = prompt_of(model)
    file = folder.with_suffix(".gguf")
    export_gguf(folder, file)
    return model, prompt, ask(file, prompt, GREEDY_TOKENS)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_those_of_llama_cpp(case: str, ask: Ask, tmp_path: Path) -> None:
    model, prompt, theirs = answer(ask, case, tmp_path / "checkpoint")
    logits = logits_of(model, prompt)
    assert np.abs(logits - theirs["logits"]).max() <= ROUNDING * np.abs(logits).max()
    assert greedy(model, prompt) == theirs["greedy"].tolist()


def test_the_kept_answers_are_llama_cpps(ask: Ask, tmp_path: Path) -> None:
    answers = {}
    for case in KEPT_CASES:
        _, _, theirs = answer(ask, case, tmp_path / case)
        answers[case] = {
            "logits": [round(float(logit), 7) for logit in theirs["logits"][-1]],
            "greedy": theirs["greedy"].tolist(),
        }
    said = json.dumps(answers, indent=1) + "\n"
    if not KEPT.exists():
        KEPT.write_text(said)
        pytest.fail(f"{KEPT.name} was missing and is written: look at it, and commit it")
    assert KEPT.read_text() == said, f"delete {KEPT.name} and run this again"
