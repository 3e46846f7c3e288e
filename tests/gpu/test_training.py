"""Training on a GPU against training on the CPU, each in processes of its own, and checkpoints that go between them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("rank.py")
CPU, GPU = "cpu", "cuda"
STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "corpus").mkdir()
    for i in range(30):
        lines = (f"it was the best of {i * 7 + j} times, it was the worst of {j} times" for j in range(12))
        (folder / "corpus" / f"{i:02}.txt").write_text("\n".join(lines))
    return folder


def train(
    folder: Path, run: str, device: str, *, attempt: int = 1, dtype: str = "float32", precision: str = "bf16", rest: int
) -> dict[str, Any]:
    """Train a run on a device up to a step, from where it is; return the report."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"} if device == CPU else {}
    arguments = (str(folder), run, str(attempt), dtype, precision, str(rest))
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | hidden,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-5000:]
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert report["step"] == rest
    return report


@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-3), ("bfloat16", 3e-3)])
def test_losses_are_the_cpus(folder: Path, dtype: str, within: float) -> None:
    losses = {
        device: [
            train(folder, f"{device}-{dtype}", device, attempt=attempt, dtype=dtype, rest=rest)["loss"]
            for attempt, rest in enumerate((1, STEPS // 2, STEPS), 1)
        ]
        for device in (CPU, GPU)
    }
    assert losses[GPU] == pytest.approx(losses[CPU], rel=within)
    assert losses[GPU][-1] < losses[GPU][0] - 0.3


def test_fp8_learns_what_bf16_does(folder: Path) -> None:
    bf16, fp8 = (
        train(folder, f"in-{precision}", GPU, dtype="bfloat16", precision=precision, rest=STEPS)["loss"]
        for precision in ("bf16", "fp8")
    )
    assert fp8 != bf16
    assert fp8 == pytest.approx(bf16, rel=1e-2)


@pytest.mark.parametrize("began", [CPU, GPU])
def test_a_training_goes_on_elsewhere_from_its_checkpoint_and_back(folder: Path, began: str) -> None:
    whole = train(folder, f"whole-{began}", began, rest=STEPS)
    other = GPU if began == CPU else CPU
    places = enumerate(((began, 4), (other, 8), (began, STEPS)), 1)
    parts = [train(folder, f"moved-{began}", place, attempt=attempt, rest=rest) for attempt, (place, rest) in places]
    assert parts[-1]["loss"] == pytest.approx(whole["loss"], abs=1e-3)
    assert parts[0]["loss"] > parts[1]["loss"] > parts[2]["loss"]


def test_what_a_gpu_has_kept_in_bf16_a_cpu_goes_on_with_in_fp32(folder: Path) -> None:
    began = train(folder, "widened", GPU, dtype="bfloat16", rest=6)
    gone_on = train(folder, "widened", CPU, attempt=2, rest=STEPS)
    whole = train(folder, "wide", CPU, rest=STEPS)
    assert gone_on["loss"] == pytest.approx(whole["loss"], rel=1e-2)
    assert gone_on["loss"] < began["loss"]
