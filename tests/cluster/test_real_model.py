"""A small real model of others, imported, over two nodes: the example as the demo applies it."""

import pytest
from objects import EXAMPLES, Objects

from arctic_cli import small_model
from arctic_cli.demo import QUESTION, chat, forwarded
from arctic_cli.manifest import load_one
from arctic_cluster import Cluster
from arctic_cluster.paths import MODELS


@pytest.mark.timeout(1200)  # the first time the model is downloaded
def test_the_imported_model_knows_the_capital_of_france_over_two_nodes(operator: Cluster, namespace: str) -> None:
    with small_model.importing(operator.volumes / MODELS / small_model.NAME) as wait_for_import:
        assert wait_for_import() is None
    objects = Objects(operator, namespace)
    manifest = load_one(EXAMPLES / "smollm2-inference.yaml", "ArcticInference")
    objects.apply(manifest)
    objects.state("ainf", "smollm2", "Ready")
    assert len({pod["spec"]["nodeName"] for pod in objects.pods("smollm2", "ArcticInference")}) == 2
    with forwarded(operator, "smollm2", manifest["spec"]["service"]["port"], namespace) as address:
        assert chat(address, "smollm2", QUESTION) == "The capital of France is Paris."
