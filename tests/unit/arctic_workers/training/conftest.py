import os
from collections.abc import Callable
from typing import Any

import pytest

from arctic_api.training import ArcticTrainingSpec

# torch asks for the name of each peer, and would wait for a name server: what tests name is this machine.
os.environ["RES_OPTIONS"] = "timeout:0 attempts:0"


@pytest.fixture(scope="session")
def spec_of() -> Callable[[list[dict[str, Any]], int], ArcticTrainingSpec]:
    """Makes a specification of stages and tokens a step; what a stage does not say is filled in."""
    return _spec_of


def _spec_of(stages: list[dict[str, Any]], tokens_per_step: int) -> ArcticTrainingSpec:
    rate = {"peak": 1.0}
    return ArcticTrainingSpec.model_validate(
        {
            "model": {"preset": "arctic-tiny"},
            "data": {"sources": [{"name": "a", "category": "code", "uri": "file:///a"}]},
            "curriculum": {
                "stages": [
                    {"name": f"s{i}", "mixture": {"a": 1}, "learningRate": rate, **s} for i, s in enumerate(stages)
                ]
            },
            "batch": {"tokensPerStep": tokens_per_step},
            "checkpoint": {"volume": {"claimName": "c"}},
        }
    )
