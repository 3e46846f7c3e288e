import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arctic_api.training import ArcticTrainingSpec, Source
from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.data.accounts import Accounts
from arctic_workers.training.data.batches import TrainingData
from arctic_workers.training.data.streams import Prepared
from arctic_workers.training.data.windows import Stream
from arctic_workers.training.errors import Refused


@pytest.fixture
def accounts(spec_of: Callable[..., ArcticTrainingSpec], tmp_path: Path) -> Accounts:
    """Of a source of 20 sequences of which the curriculum reads 30, in two stages of different batches.

    Another one is only for validation.
    """
    stages = [{"tokens": 160, "sequenceLength": 16}, {"tokens": 320, "sequenceLength": 16, "tokensPerStep": 32}]
    curriculum = Curriculum.plan(spec_of(stages, 16))
    data = TrainingData(curriculum, {"a": Stream("a", "code", np.zeros(321, np.uint16))}, 0)
    prepared = []
    for name, train, held_out, skipped in (("a", (321, 5), (9, 1), 2), ("validation.a", (0, 0), (50, 4), 1)):
        folder = tmp_path / name
        folder.mkdir()
        parts = {
            part: dict(zip(("tokens", "documents"), counts, strict=True))
            for part, counts in (("train", train), ("held-out", held_out))
        }
        (folder / "index.json").write_text(
            json.dumps({"parts": parts, "source": {"skipped": skipped, "unusedSplits": ["test"]}})
        )
        prepared.append(Prepared(name, "code", folder))
    return Accounts(prepared, data, curriculum.steps)


def test_epochs_are_counted_over_stages(accounts: Accounts) -> None:
    report, _ = accounts.at(15)  # ten steps of one sequence, and five of two
    assert (report.name, report.tokens, report.documents, report.skipped) == ("a", 321, 6, 2)
    assert (report.epochs, report.planned_epochs, report.unused_splits) == (1.0, 1.5, ["test"])
    assert [accounts.at(step)[0].epochs for step in (0, 10, 20)] == [0.0, 0.5, 1.5]


def test_what_is_only_for_validation_is_reported_and_never_read_again(accounts: Accounts) -> None:
    report = accounts.at(15)[1]
    assert (report.name, report.tokens, report.documents, report.skipped) == ("validation.a", 0, 4, 1)
    assert (report.epochs, report.planned_epochs) == (0.0, 0.0)


def test_a_source_that_runs_dry_is_said_or_refused_before_the_first_step(
    accounts: Accounts, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source.model_validate({"name": "a", "category": "code", "uri": "file:///a"})
    accounts.check([source], leader=True)
    assert "source a has 321 tokens to train on, and the curriculum reads them 1.50 times" in caplog.text
    with pytest.raises(Refused, match=r"source a has 321 tokens .* 1.50 times: give it less weight") as refused:
        accounts.check([source.model_copy(update={"when_exhausted": "refuse"})], leader=False)
    assert refused.value.reason == "SourceExhausted"
