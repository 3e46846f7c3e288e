"""IFEval's checkers, each on a text that follows its instruction and on one that does not."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from instructions import CASES
from tiny_suites import write_ifeval

from arctic_workers.evaluation.suites.form import Answer, DataError
from arctic_workers.evaluation.suites.ifeval import IfEval, follows, loosened
from arctic_workers.evaluation.suites.ifeval_checkers import CHECKERS, _language_detector, sentences, words


def test_every_instruction_has_a_case() -> None:
    assert set(CASES) == set(CHECKERS)


@pytest.mark.parametrize("name", CASES)
def test_a_text_that_follows_is_told_from_one_that_does_not(name: str) -> None:
    asked, kept, broken = CASES[name]
    assert set(CHECKERS[name][0]) == set(asked)
    assert follows(kept, name, asked)
    assert not follows(broken, name, asked)
    assert not follows(" \n", name, asked)


def test_sentences_and_words_are_cut_as_nltk_does() -> None:
    assert sentences("Mr. Jones paid $3.50 to the U.S. Navy. It's odd!") == [
        "Mr. Jones paid $3.50 to the U.S. Navy.",
        "It's odd!",
    ]
    assert words("It's odd, isn't it?") == ["It", "'s", "odd", ",", "is", "n't", "it", "?"]


def test_threads_that_judge_the_first_texts_know_all_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langdetect.detector_factory._factory", None)
    _language_detector.cache_clear()
    french = "Les enfants jouent dans le jardin pendant que leur mère prépare le repas du soir."
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: follows(french, "language:response_language", {"language": "fr"}), range(400)))
    assert all(found)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("keywords:existence", {"keywords": ["sum", "f(x"]}),
        ("length_constraints:number_words", {"num_words": "three", "relation": "at least"}),
    ],
)
def test_arguments_that_can_not_be_checked_are_named(tmp_path: Path, name: str, asked: dict[str, Any]) -> None:
    path = tmp_path / "input_data.jsonl"
    path.write_text(json.dumps({"key": 7, "prompt": "p", "instruction_id_list": [name], "kwargs": [asked]}))
    with pytest.raises(DataError, match=f"key 7: {name} can't be checked: "):
        IfEval(path)


def test_prompts_that_share_a_key_are_named(tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    path = tmp_path / "input_data.jsonl"
    path.write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match="line 3 has the key 7, as line 1"):
        IfEval(path)


def test_an_answers_frame_does_not_count_loosely() -> None:
    assert loosened("Sure:\n*a*\nBye")[-1] == "a"


@pytest.fixture
def suite(tmp_path: Path) -> IfEval:
    path = tmp_path / "input_data.jsonl"
    write_ifeval(path)
    return IfEval(path)


def test_the_four_figures_count_prompts_and_instructions_strictly_and_loosely(suite: IfEval) -> None:
    said = {"ifeval/1000": "Here You Go:\nthe sea is calm tonight and so am i", "ifeval/1001": "* a"}
    verdicts = {name: [suite.judge(name, Answer(text, is_chat=True))] for name, text in said.items()}
    assert {name: part.mean() for name, part in suite.figures(verdicts).items()} == {
        "prompt strict": 0.0,
        "instruction strict": pytest.approx(1 / 3),
        "prompt loose": 0.5,
        "instruction loose": pytest.approx(2 / 3),
    }
    assert verdicts["ifeval/1001"][0].kind == "detectable_format:number_bullet_lists"


def test_the_same_answer_gives_the_same_verdict_each_time(suite: IfEval) -> None:
    # A text whose language is drawn among several, if the detector is left to itself.
    answer = Answer("ok no no ok", is_chat=True)
    assert len({suite.judge("ifeval/1000", answer).kind for _ in range(20)}) == 1


def test_data_that_no_checker_knows_are_refused(tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "", "instruction_id_list": ["keywords:frequency"], "kwargs": [{"keyword": "a"}]}
    path = tmp_path / "input_data.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match="key 7: keywords:frequency has no frequency, relation"):
        IfEval(path)
    path.write_text(json.dumps({**row, "instruction_id_list": ["keywords:rhyme"]}))
    with pytest.raises(DataError, match="key 7: nothing here checks the instruction keywords:rhyme"):
        IfEval(path)
