"""A whole evaluation, asked of a server that answers as it is told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from told_server import ROWS, TEXTS, Server, write

from arctic_workers.evaluation.endpoint import Endpoint, EndpointError, Sampling
from arctic_workers.evaluation.records import MixedError, claim
from arctic_workers.evaluation.report import Evaluated, page
from arctic_workers.evaluation.run import RESULTS, Evaluation, evaluate_model
from arctic_workers.evaluation.sandbox import Sandbox
from arctic_workers.evaluation.serving import ModelError
from arctic_workers.evaluation.suites.form import DataError


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def evaluated(server: Server, data: dict[str, Path], folder: Path, model: str = "tiny") -> dict[str, Any]:
    endpoint = Endpoint(server.url, model, is_chat=True)
    try:
        return evaluate_model(Evaluation(model, data, Sampling(), folder, 2), endpoint, Sandbox, lambda _: None)
    finally:
        endpoint.close()


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    return {"gsm8k": write(tmp_path / "test.jsonl", ROWS), "perplexity": write(tmp_path / "texts.jsonl", TEXTS)}


def test_results_say_scores_failures_and_what_was_not_run(
    server: Server, data: dict[str, Path], tmp_path: Path
) -> None:
    results = evaluated(server, data, tmp_path / "out")
    gsm8k = results["suites"]["gsm8k"]
    assert gsm8k["main figure"] == "strict match"
    assert gsm8k["figures"]["strict match"]["value"] == 0.5
    assert gsm8k["failures"] == {"wrong number": 2, "refused by the model's server": 1}
    assert gsm8k["judge"] == {"gold": 1.0, "empty": 0.0, "constant": 0.0, "prompt": 0.0}
    assert results["suites"]["perplexity"]["figures"]["perplexity, sql"]["value"] == pytest.approx(1.6487, abs=1e-4)
    assert results["suites"]["spider"] == {"state": "not run", "why": "no data were given"}
    mean = results["enterprise intelligence"]
    assert mean["state"] == "not run"
    assert "missing: humaneval-plus, mbpp-plus, spider, ifeval" in mean["why"]
    assert "value" not in mean
    assert json.loads((tmp_path / "out" / RESULTS).read_text()) == results


def test_it_goes_on_where_it_was_ended_and_the_same_answers_give_the_same_digits(
    server: Server, data: dict[str, Path], tmp_path: Path
) -> None:
    server.most = 3
    with pytest.raises(EndpointError, match=r"answers 401: .*no such key"):
        evaluated(server, data, tmp_path / "out")
    server.most = 1000
    evaluated(server, data, tmp_path / "out")
    assert len(server.asked) == len(ROWS) + len(TEXTS)
    first = (tmp_path / "out" / RESULTS).read_bytes()
    # A line that was being written when the machine went down.
    with (tmp_path / "out" / "gsm8k" / "verdicts.jsonl").open("a") as file:
        file.write('{"question": "gsm')
    evaluated(server, data, tmp_path / "out")
    assert len(server.asked) == len(ROWS) + len(TEXTS)
    assert (tmp_path / "out" / RESULTS).read_bytes() == first


def test_answers_to_other_data_or_of_another_model_are_not_mixed(
    server: Server, data: dict[str, Path], tmp_path: Path
) -> None:
    evaluated(server, data, tmp_path / "out")
    write(data["gsm8k"], ROWS[:3])
    with pytest.raises(MixedError, match="another evaluation"):
        evaluated(server, data, tmp_path / "out")
    claim(tmp_path / "other", {"model": "a"})
    with pytest.raises(MixedError, match="model 'a' and not 'b'"):
        claim(tmp_path / "other", {"model": "b"})


def test_a_suite_whose_judge_errs_is_unfit_and_asks_nothing(server: Server, tmp_path: Path) -> None:
    rows = [{"question": "What is 1 + 1?", "answer": "two"}]
    results = evaluated(server, {"gsm8k": write(tmp_path / "test.jsonl", rows)}, tmp_path / "out")
    assert results["suites"]["gsm8k"]["state"] == "unfit"
    assert "gold answer of gsm8k/0" in results["suites"]["gsm8k"]["why"]
    assert "figures" not in results["suites"]["gsm8k"]
    assert server.asked == []


def test_a_suite_that_is_refused_from_its_first_questions_on_has_no_score_and_is_asked_again(
    server: Server, tmp_path: Path
) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(1, 101)]
    data, asked = {"gsm8k": write(tmp_path / "test.jsonl", rows)}, list[Any]()
    right = server.answer

    def refuse(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(body)
        return 400, {"error": {"message": "Unsupported parameter: 'max_tokens'"}}

    server.answer = refuse  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"gsm8k: .*Unsupported parameter: 'max_tokens'.*leave the suite out"):
        evaluated(server, data, tmp_path / "out")
    assert 1 < len(asked) < len(rows)
    assert not (tmp_path / "out" / RESULTS).exists()
    server.answer = right  # type: ignore[method-assign]
    gsm8k = evaluated(server, data, tmp_path / "out")["suites"]["gsm8k"]
    assert (gsm8k["figures"]["strict match"]["value"], gsm8k["failures"]["refused by the model's server"]) == (0.03, 1)


def test_refusals_count_where_other_questions_are_answered(server: Server, tmp_path: Path) -> None:
    """Of a suite with long questions, the first of them among them; what is refused once is not asked again."""
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(1, 101)]
    data, right = {"gsm8k": write(tmp_path / "test.jsonl", rows)}, server.answer

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if int(body["messages"][0]["content"].split()[2]) <= 40:
            server.asked.append(body)
            return 400, {"error": {"message": "the prompt is too long"}}
        return right(path, body)

    server.answer = answer  # type: ignore[method-assign]
    for _ in range(2):
        gsm8k = evaluated(server, data, tmp_path / "out")["suites"]["gsm8k"]
        assert gsm8k["failures"]["refused by the model's server"] == 40
        assert len(server.asked) == len(rows)


def test_a_text_that_the_model_refuses_is_named(server: Server, tmp_path: Path) -> None:
    server.answer = lambda path, body: (400, {"error": {"message": "too long"}})  # type: ignore[method-assign]
    with pytest.raises(DataError, match="perplexity/0 can't be read by the model"):
        evaluated(server, {"perplexity": write(tmp_path / "texts.jsonl", TEXTS)}, tmp_path / "out")


def test_a_text_that_no_model_can_be_asked_is_named(server: Server, tmp_path: Path) -> None:
    texts = [{"text": "cut off in the middle of \ud83d", "category": "code"}]
    with pytest.raises(DataError, match="perplexity/0 can't be read by the model: what is asked is no UTF-8"):
        evaluated(server, {"perplexity": write(tmp_path / "texts.jsonl", texts)}, tmp_path / "out")


def test_the_page_has_scores_failures_and_models_side_by_side(
    server: Server, data: dict[str, Path], tmp_path: Path
) -> None:
    evaluated(server, data, tmp_path / "one", "one <b>")
    right = server.answer
    server.answer = lambda path, body: right(path, body) if "prompt" in body else (  # type: ignore[method-assign]
        200, {"choices": [{"message": {"content": "#### 10 <script>"}}]}
    )  # fmt: skip
    evaluated(server, data, tmp_path / "two", "two")
    html = page([Evaluated.read(tmp_path / "one"), Evaluated.read(tmp_path / "two")])
    assert "one &lt;b&gt;" in html
    assert "#### 10 &lt;script&gt;" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert "two over one &lt;b&gt;" in html
    assert "no data were given" in html
    assert "0, not 8" in html
    assert "instructions (ifeval prompt strict)" in html
    assert html.index("<td>gsm8k</td><td>strict match</td>") < html.index("<td>gsm8k</td><td>flexible extract</td>")
    with pytest.raises(FileNotFoundError, match=r"has no results\.json"):
        Evaluated.read(tmp_path)


def test_half_a_surrogate_pair_in_an_answer_is_shown_as_it_is_written(server: Server, tmp_path: Path) -> None:
    choice = {"message": {"content": "cut off in the middle of \ud83d"}}
    server.answer = lambda path, body: (200, {"choices": [choice]})  # type: ignore[method-assign]
    evaluated(server, {"gsm8k": write(tmp_path / "test.jsonl", ROWS)}, tmp_path / "out")
    assert rb"in the middle of \ud83d" in page([Evaluated.read(tmp_path / "out")]).encode()


def test_what_is_no_text_is_not_kept_as_an_answer(server: Server, tmp_path: Path) -> None:
    thoughts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "#### 2"}]
    right = server.answer
    server.answer = lambda path, body: (200, {"choices": [{"message": {"content": thoughts}}]})  # type: ignore[method-assign]
    data = {"gsm8k": write(tmp_path / "test.jsonl", ROWS)}
    with pytest.raises(EndpointError, match=r"/v1 answered with no text: .*thinking"):
        evaluated(server, data, tmp_path / "out")
    server.answer = right  # type: ignore[method-assign]
    assert evaluated(server, data, tmp_path / "out")["suites"]["gsm8k"]["figures"]["strict match"]["value"] == 0.5


def test_a_model_of_this_machine_is_asked_past_its_proxy(
    server: Server, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert evaluated(server, data, tmp_path / "out")["suites"]["gsm8k"]["figures"]["strict match"]["value"] == 0.5
    with pytest.raises(EndpointError, match=r"http://models\.example/v1 can't be asked by the proxy"):
        Endpoint("http://models.example/v1", "tiny", is_chat=True)
