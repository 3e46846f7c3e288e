"""`arctic evaluate` as people type it; once with a model that is served for it."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from models import byte_tokenizer, write_model

from arctic_cli.main import main
from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights
from arctic_workers.inference.http.text import Text

pytestmark = pytest.mark.processes

TEXT = "def add(a, b): return a + b"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": TEXT, "category": "code"}) + "\n")
    return path


def test_a_folder_is_served_and_its_perplexity_is_the_models(tmp_path: Path, data: Path) -> None:
    folder, tokenizer = tmp_path / "tiny", byte_tokenizer()
    write_model(folder, tokenizer, vocab_size=tokenizer.get_vocab_size())
    out = tmp_path / "out"
    asked = CliRunner().invoke(main, ["evaluate", str(folder), "--suite", f"perplexity={data}", "-o", str(out)])
    assert asked.exit_code == 0, asked.output
    assert asked.output.splitlines()[-2:] == [f"{out}/results.json", f"{out}/report.html"]
    results = json.loads((out / "results.json").read_text())
    assert results["model"] == "tiny"
    assert results["enterprise intelligence"]["state"] == "not run"
    tokens = Text(folder).encode(TEXT)
    model = ArcticModel(ArcticConfig.from_folder(folder))
    load_weights(model, folder)
    with torch.inference_mode():
        logprobs_TV = model(torch.tensor([tokens]))[0, :-1].log_softmax(-1)
    loss = -float(logprobs_TV.gather(1, torch.tensor(tokens[1:])[:, None]).mean())
    figures = results["suites"]["perplexity"]["figures"]
    assert math.log(figures["perplexity, code"]["value"]) == pytest.approx(loss, rel=1e-2)  # served in bf16


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["MODEL", "--suite", "chess={data}"], "write NAME=PATH, with one of humaneval, humaneval-plus"),
        (["MODEL", "--suite", "gsm8k={data}x"], "texts.jsonlx is not there"),
        (["MODEL", "--suite", "gsm8k=file:///a%20b#?"], "gsm8k=file:///a%20b#?: /a b#? is not there"),
        (["MODEL", "--suite", "gsm8k=/a%20b"], "gsm8k=/a%20b: /a%20b is not there"),
        (["MODEL", "--suite", "gsm8k={data}", "--suite", "gsm8k={data}"], "gsm8k is there twice"),
        (["MODEL", "--suite", "gsm8k={data}", "--samples", "2"], "take a --temperature above 0"),
        (["MODEL", "--suite", "gsm8k={data}"], "MODEL has no config.json: name a model's folder"),
        (["http://127.0.0.1:9/v1", "--suite", "gsm8k={data}"], "say which with --name"),
        (
            ["http://127.0.0.1:9/v1", "--name", "x", "--suite", "gsm8k={data}", "--compare", "."],
            ". has no results.json",
        ),
        (["http://127.0.0.1:9/v1", "--name", "x", "--suite", "gsm8k={data}"], "line 1 has no question, answer"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_a_sentence(
    arguments: list[str], sentence: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = CliRunner().invoke(main, ["evaluate", *(argument.format(data=data) for argument in arguments)])
    assert asked.exit_code != 0
    assert sentence in " ".join(asked.output.split())


def test_a_damaged_checkpoint_is_answered_in_a_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "tiny" / "checkpoints" / "step-0000000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    asked = CliRunner().invoke(main, ["evaluate", str(checkpoint), "--suite", f"perplexity={data}"])
    assert asked.exit_code == 1
    assert "is damaged: manifest.json is missing, or is not as it was written: name another one" in asked.output
