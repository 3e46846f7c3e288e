"""The least that a specification says, for tests and benchmarks in which nothing is trained."""

from typing import Any

TRAINING_SPEC: dict[str, Any] = {
    "model": {"preset": "arctic-tiny"},
    "tokenizer": {"train": {"vocabSize": 512}},
    "data": {"sources": [{"name": "books", "category": "general", "uri": "file:///books"}]},
    "curriculum": {
        "stages": [
            {
                "name": "general",
                "tokens": "1M",
                "mixture": {"books": 1},
                "learningRate": {"peak": 0.001},
                "sequenceLength": 128,
            }
        ]
    },
    "batch": {"tokensPerStep": 8192},
    "parallelism": {"nodes": 2},
    "checkpoint": {"volume": {"claimName": "store"}},
}
