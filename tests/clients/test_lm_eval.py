"""EleutherAI's lm-eval, unchanged, against a group of ours: a task of likelihoods and one of answers.

The questions are those of MMLU that lm-eval itself ships as examples.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from groups import Group
from models import byte_tokenizer, write_model

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup, Ports
from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights
from arctic_workers.control.ports import free_ports
from arctic_workers.inference.http.text import Text

SHIPPED = "lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
QUESTION = re.compile(r"Q: (.+)\n\(A\) (.+) \(B\) (.+) \(C\) (.+) \(D\) (.+)\nA:")
COUNT = 12
LENGTH = 512
ANSWER = 16
TASKS: tuple[dict[str, Any], ...] = (
    {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    {
        "task": "answers",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n\n", "Q:", "A:", "</s>", "##"], "max_gen_toks": ANSWER, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = byte_tokenizer()
    write_model(made, tokenizer, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=LENGTH)
    (made / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return made


@pytest.fixture(scope="module")
def group(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    rendezvous, control, metrics, http = free_ports(4)
    spec = {
        "model": {"uri": "file:///models/tiny"},
        "quantization": {"weights": "fp32", "kvCache": "fp32"},
        "batching": {"tokenBudget": 64, "maxSequences": 4},
    }
    world = InferenceGroup(
        namespace="tests",
        name="tiny",
        uid="0123456789abcdef",
        hosts=["127.0.0.1"],
        ports=Ports(control=control, metrics=metrics, http=http, rendezvous=rendezvous),
        tls_folder=None,
        termination_message=str(tmp_path_factory.mktemp("group") / "rank0.json"),
        spec=ArcticInferenceSpec.model_validate(spec),
        group="tiny-01234-1-g0",
        revision="1",
        model_folder=str(folder),
    )
    made = Group([world])
    try:
        made.wait_until_ready()
        yield made
    finally:
        made.end()


def questions(python: Path) -> list[dict[str, Any]]:
    [site] = (python.parent.parent / "lib").glob("python*/site-packages")
    shipped = json.loads((site / SHIPPED).read_text())
    found = [match.groups() for text in shipped.values() for match in QUESTION.finditer(text)]
    short = [(question, *choices) for question, *choices in found if len(question) < LENGTH // 2]
    return [{"question": question, "choices": choices} for question, *choices in short[:COUNT]]


def evaluate(python: Path, group: Group, docs: list[dict[str, Any]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run the tasks; return what was asked and answered in each."""
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for task in TASKS:
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        written = {**source, "doc_to_text": "Q: {{question}}\nA:", **task}
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(written))
    model = f"model=tiny,base_url={group.url}/v1/completions,max_length={LENGTH},num_concurrent=2"
    subprocess.run(
        [python, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model, "--batch_size", "8",
         "--tasks", ",".join(task["task"] for task in TASKS), "--include_path", folder,
         "--output_path", folder / "out", "--log_samples"],
        check=True,
    )  # fmt: skip
    samples = {}
    for task in TASKS:
        [file] = (folder / "out").rglob(f"samples_{task['task']}_*.jsonl")
        samples[task["task"]] = [json.loads(line) for line in file.read_text().splitlines()]
    return samples


@pytest.mark.timeout(600)
def test_its_likelihoods_are_the_models_and_its_answers_are_greedy(
    client_python: Path, group: Group, folder: Path, tmp_path: Path
) -> None:
    docs = questions(client_python)
    assert len(docs) == COUNT
    samples = evaluate(client_python, group, docs, tmp_path)
    text, model = Text(folder), ArcticModel(ArcticConfig.from_folder(folder))
    load_weights(model, folder)
    for sample in samples["choices"]:
        for argument, [answer] in zip(sample["arguments"].values(), sample["resps"], strict=True):
            context, continuation = argument["arg_0"], argument["arg_1"]
            whole = text.encode(context + continuation)
            begin = len(text.encode(context))
            with torch.inference_mode():
                logprobs_TV = model(torch.tensor([whole]))[0, begin - 1 : -1].log_softmax(-1)
            expected = logprobs_TV.gather(1, torch.tensor(whole[begin:])[:, None]).sum()
            likelihood, is_greedy = answer
            assert float(likelihood) == pytest.approx(float(expected), abs=1e-2)
            assert str(is_greedy) == str(logprobs_TV.argmax(-1).tolist() == whole[begin:])
    for sample in samples["answers"]:
        prompt = sample["arguments"]["gen_args_0"]["arg_0"]
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": ANSWER, "temperature": 0,
                 "stop": TASKS[1]["generation_kwargs"]["until"]}  # fmt: skip
        said = httpx.post(f"{group.url}/v1/completions", json=asked).json()["choices"][0]["text"]
        assert sample["resps"] == [[said]]
