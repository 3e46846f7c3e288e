"""A service of a random model for each engine: one manifest, of which only `engine.name` changes."""

import os
import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from conformance import KIND, PATIENCE, Endpoint
from local_cluster import cluster, operator
from models import Greedy, byte_tokenizer, end_with, greedy_answers, write_model
from objects import Objects
from tokenizers import Tokenizer

from arctic_api import API_VERSION
from arctic_api.engine_options import EngineName
from arctic_cluster import Cluster
from arctic_cluster.manifests import restricted_namespace
from arctic_cluster.paths import CORPUS

__all__ = ["cluster", "operator"]

NAME = "tiny"
ENGINES: tuple[EngineName, ...] = ("native", "vllm")
FOLDER = "conformance"
MOUNT = "/var/lib/arctic/corpus"
PROMPT_TOKENS, ANSWER_TOKENS, ANSWERS = 6, 16, 8
MARGIN = 0.01
"""Of logits that spread by 3.6: what sums in another order add in fp32 is less than a thousandth."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run everything on one engine, then on the next."""
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", metafunc.config.getoption("engines") or ENGINES, scope="session")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The model's tokenizer."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def answers(operator: Cluster, tokenizer: Tokenizer) -> Iterator[list[Greedy]]:
    """What the model answers, to prompts without near-ties; it lies where pods see it.

    The first answer alone ends with a token that ends answers.
    """
    folder = operator.volumes / CORPUS / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_model(folder, tokenizer, vocab_size=tokenizer.get_vocab_size(), intermediate_size=96)
    draw = random.Random(1)
    # A prompt that ends within a character would lend its bytes to the answer's first.
    texts = {token: tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())}
    whole = [token for token, text in texts.items() if text and "\ufffd" not in text]
    drawn = [draw.choices(whole, k=PROMPT_TOKENS) for _ in range(4 * ANSWERS)]
    clear = [answer for answer in greedy_answers(folder, drawn, ANSWER_TOKENS) if answer.margin > MARGIN]
    first = next(answer for answer in clear if answer.answer[-1] not in answer.answer[:-1])
    last = first.answer[-1]
    others = [answer for answer in clear if last not in answer.answer][:ANSWERS]
    assert len(others) == ANSWERS
    end_with(folder, last)
    os.chmod(folder, 0o755)
    yield [first, *others]
    shutil.rmtree(folder)


def manifest(engine: EngineName) -> dict[str, Any]:
    """The manifest under test: what both engines can do, in two pods."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": NAME},
        "spec": {
            "model": {"uri": f"file://{MOUNT}/{FOLDER}"},
            "engine": {"name": engine},
            "quantization": {"weights": "fp32", "kvCache": "fp32"},
            "parallelism": {"tensor": 1, "pipeline": 2},
            "attention": {"maxLength": 256},
            "batching": {"tokenBudget": 256, "maxSequences": 2},
            "rollout": {"drainTimeout": "60s"},
            "template": {
                "environment": [{"name": "OMP_NUM_THREADS", "value": "1"}],
                "volumes": [{"claimName": CORPUS, "mountPath": MOUNT}],
            },
        },
    }


@pytest.fixture(scope="session")
def objects(operator: Cluster, engine: EngineName) -> Iterator[Objects]:
    """A namespace of the engine's own."""
    namespace = f"conformance-{engine}"
    operator.apply([restricted_namespace(namespace)])
    operator.create_claims(namespace)
    yield Objects(operator, namespace)
    operator.delete_namespace(namespace)


@pytest.fixture(scope="session")
def served(objects: Objects, engine: EngineName, answers: list[Greedy]) -> dict[str, Any]:
    """The manifest, once it is served."""
    applied = manifest(engine)
    objects.apply(applied)
    objects.state(KIND, NAME, "Ready", limit=PATIENCE)
    return applied


@pytest.fixture
def endpoint(objects: Objects, served: dict[str, Any]) -> Endpoint:
    """The service as it is now."""
    return Endpoint(objects, NAME)
