"""The forward pass against answers of llama.cpp's that are kept; `make parity` asks llama.cpp itself, and more."""

from pathlib import Path

import numpy as np
import pytest
from parity import KEPT_CASES, ROUNDING, greedy, kept_answers, logits_of, prompt_of, random_checkpoint


@pytest.mark.parametrize("case", KEPT_CASES)
def test_logits_and_greedy_tokens_equal_those_that_llama_cpp_gave(case: str, tmp_path: Path) -> None:
    model, theirs = random_checkpoint(case, tmp_path / "model"), kept_answers()[case]
    prompt = prompt_of(model)
    logits = logits_of(model, prompt)[-1]
    assert np.abs(logits - np.array(theirs["logits"])).max() <= ROUNDING * np.abs(logits).max()
    assert greedy(model, prompt) == theirs["greedy"]
