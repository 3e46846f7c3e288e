import math

import pytest

from arctic_api.training import ArcticTrainingSpec
from arctic_workers.evaluation import SUITES, evaluate


class Judged:
    categories = ("code", "sql")

    def held_out_loss(self, category: str) -> float:
        return {"code": 2.0, "sql": 0.5}[category]


def test_perplexity_is_given_for_each_category() -> None:
    assert evaluate(["perplexity"], Judged()) == {
        "perplexity/code": pytest.approx(math.e**2),
        "perplexity/sql": pytest.approx(math.e**0.5),
    }


def test_every_suite_that_is_there_can_be_named_in_a_manifest() -> None:
    schema = ArcticTrainingSpec.model_json_schema()["$defs"]["Evaluation"]["properties"]["suites"]
    assert set(SUITES) <= set(schema["items"]["enum"])
