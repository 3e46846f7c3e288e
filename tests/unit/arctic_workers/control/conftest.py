"""Worlds on free ports of this machine, with real certificates."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import InferenceGroup, Ports, TrainingWorld
from arctic_operator.certificates import Authority, server_secret

FREE_PORTS = Ports(control=0, metrics=0)


@pytest.fixture
def group() -> InferenceGroup:
    """A group of local processes: no certificates, loopback only."""
    return InferenceGroup(
        namespace="team",
        name="chat",
        uid="0e5e7e0c-0000-4000-8000-000000000000",
        hosts=["127.0.0.1"],
        ports=FREE_PORTS,
        tls_folder=None,
        spec=ArcticInferenceSpec.model_validate({"model": {"training": "tiny"}}),
        group="chat-0e5e7-r1-g0",
        revision="r1",
        model_folder="/model",
    )


@pytest.fixture
def training_world() -> TrainingWorld:
    spec = {
        "model": {"preset": "arctic-tiny"},
        "tokenizer": {"train": {"vocabSize": 2048}},
        "data": {"sources": [{"name": "books", "category": "general", "uri": "file:///books", "format": "text"}]},
        "curriculum": {
            "stages": [
                {
                    "name": "one",
                    "tokens": "1M",
                    "mixture": {"books": 1},
                    "learningRate": {"peak": 1e-3},
                    "sequenceLength": 128,
                }
            ]
        },
        "batch": {"tokensPerStep": 4096},
        "checkpoint": {"volume": {"claimName": "store"}},
    }
    return TrainingWorld(
        namespace="team",
        name="tiny",
        uid="1e5e7e0c-0000-4000-8000-000000000000",
        first_host="127.0.0.1",
        ports=FREE_PORTS,
        tls_folder=None,
        spec=ArcticTrainingSpec.model_validate(spec),
        attempt=3,
        epoch=3,
        run_folder="/store/team/tiny-1e5e7",
    )


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def authority(now: datetime) -> Authority:
    return Authority.create(now)


@pytest.fixture
def tls_folder(tmp_path: Path, authority: Authority, now: datetime) -> Path:
    """The mounted Secret of `team/chat`."""
    folder = tmp_path / "tls"
    folder.mkdir()
    for name, content in server_secret(authority, "chat", "team", now).items():
        (folder / name).write_bytes(content)
    return folder
