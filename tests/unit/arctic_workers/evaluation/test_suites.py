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


@pytest.mark.parametrize("loss", [math.nan, math.inf, 710.0])
def test_figures_that_are_no_finite_numbers_are_left_out(loss: float) -> None:
    class Lost(Judged):
        def held_out_loss(self, category: str) -> float:
            return loss if category == "code" else super().held_out_loss(category)

    assert set(evaluate(["perplexity"], Lost())) == {"perplexity/sql"}


def test_every_suite_that_is_there_can_be_named_in_a_manifest() -> None:
    schema = ArcticTrainingSpec.model_json_schema()["$defs"]["Evaluation"]["properties"]["suites"]
    assert set(SUITES) <= set(schema["items"]["enum"])
