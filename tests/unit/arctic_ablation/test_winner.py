"""The winner's manifest."""

from arctic_ablation.study import Found, Point, VariantStudy
from arctic_ablation.variants import total_tokens
from arctic_ablation.winner import best_manifest, winner
from arctic_api.verdict import verdict


def test_the_best_is_the_ablations_training_with_what_was_varied(make):
    spec = make()
    study = VariantStudy("rates", spec)
    assert best_manifest("rates", spec, study, {}) is None
    found = {
        run.name: Found([Point(run.total, {"perplexity/sql": 5.0 - place})])
        for place, run in enumerate(study.all_runs({}))
    }
    made = best_manifest("rates", spec, study, found)
    expected = spec.training.wire()
    expected["curriculum"]["stages"][0]["learningRate"]["peak"] = 3e-3
    assert made["spec"] == {name: value for name, value in expected.items() if name not in ("suspend", "paused")}
    assert verdict(made) == []


def test_a_winner_is_stretched_to_the_target(make):
    training = make().training.wire()
    made = winner("rates", training, 819_200)
    assert made["metadata"]["name"] == "rates-best"
    assert total_tokens(made["spec"]) == 819_200
    assert made["spec"]["curriculum"]["stages"][0]["learningRate"]["warmupTokens"] == 40_960
    assert verdict(made) == []
