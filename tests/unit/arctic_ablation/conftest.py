"""A small ablation, as a specification."""

from typing import Any

import pytest

from arctic_api.ablation import ArcticAblationSpec

TRAINING: dict[str, Any] = {
    "model": {"preset": "arctic-tiny"},
    "tokenizer": {"train": {"vocabSize": 300}},
    "data": {
        "sources": [
            {"name": name, "category": category, "uri": f"file:///{name}"}
            for name, category in (("books", "general"), ("python", "code"), ("proofs", "math"))
        ],
        "validation": {"sources": [{"name": "queries", "category": "sql", "uri": "file:///queries"}]},
    },
    "curriculum": {
        "stages": [
            {
                "name": name,
                "tokens": 40_960,
                "mixture": mixture,
                "learningRate": {"peak": 1e-3, "warmupTokens": 4096},
                "sequenceLength": 64,
            }
            for name, mixture in (("general", {"books": 3, "python": 1}), ("late", {"python": 1, "proofs": 1}))
        ]
    },
    "batch": {"tokensPerStep": 4096},
    "checkpoint": {"volume": {"claimName": "store"}},
}
RATES = {"field": "curriculum.stages.general.learningRate.peak", "values": [1e-3, 2e-3, 3e-3]}


@pytest.fixture(scope="session")
def make():
    """Return an ablation's specification: a grid of three learning rates unless something else is said."""

    def make(**fields: Any) -> ArcticAblationSpec:
        varied = {} if {"changes", "mixture"} & set(fields) else {"grid": [RATES]}
        content = {"training": TRAINING, "objective": {"perplexity": {"sql": 1}}, **varied, **fields}
        return ArcticAblationSpec.model_validate(content)

    return make
