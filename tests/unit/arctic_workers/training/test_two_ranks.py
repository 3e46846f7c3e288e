"""Two real processes under DeepSpeed over gloo, one that goes on with what they began, and four with two copies."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from arctic_api.training import ArcticTrainingSpec
from arctic_model.config import ArcticConfig
from arctic_model.lora import merged
from arctic_model.model import ArcticModel
from arctic_model.names import tensor_shapes
from arctic_model.peft import read_adapter
from arctic_model.weights import load_weights
from arctic_workers.training.checkpoint.model import write_model
from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.data.batches import TrainingData
from arctic_workers.training.data.streams import Prepared, open_streams
from arctic_workers.training.data.tokenizer import TextEncoder
from arctic_workers.training.data.windows import IGNORED, MicroBatch
from arctic_workers.training.journal import read_lines, that_hold

LONG = 1500
pytestmark = [pytest.mark.processes, pytest.mark.timeout(LONG + 60)]  # minutes of work where cores are busy

SCRIPT = Path(__file__).with_name("worlds.py")
ANSWER = "the best of times"


def run(folder: Path, *worlds: str) -> None:
    settings = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), str(folder), *worlds]
    ended = subprocess.run(command, env=os.environ | settings, timeout=LONG, check=False)
    assert ended.returncode == 0, "\n".join(log.read_text()[-3000:] for log in folder.glob("log.*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for name, line in (
        ("books", "it was the best of {} times, it was the worst of {} times"),
        ("programs", "x{} = f({})"),
    ):
        (folder / "corpus" / name).mkdir(parents=True)
        for i in range(30):
            text = "\n".join(line.format(i * 7 + j, j) for j in range(12))
            (folder / "corpus" / name / f"{i:02}.txt").write_text(text)
    chats = [[{"role": "user", "content": f"f({i})?"}, {"role": "assistant", "content": ANSWER}] for i in range(40)]
    (folder / "corpus" / "chats.jsonl").write_text(
        "".join(json.dumps({"messages": chat}) + "\n" for chat in [*chats, None])
    )
    parts = ("refusals", "one_step", "divided_step", "runs", "rounded", "commands", "stopped_early")
    later = ("extended", "skipped_updates", "slow_commit", "pause_when_put_off", "full_store", "jumps")
    run(
        folder,
        f"2:{','.join(parts + later)}",
        "1:memory_of_a_rank,other_world",
        "2:and_back,adapters,longer,instructed",
        "2:long_document",
        "4:forced_router",
    )
    return folder


def read(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.{rank}.json").read_text())
    return content


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_no_rank_imports_torchs_compiler(folder: Path, ranks: int) -> None:
    for rank in range(ranks):
        assert not read(folder, f"compiler-{ranks}", rank)


@pytest.fixture(scope="module")
def step(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"step.{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["step", "whole-step", "dropping-step", "grouped-step"])
def test_gradients_of_shared_out_experts_equal_those_of_one_process_with_all_batches(folder: Path, name: str) -> None:
    assert_gradients(folder, name, f"{name}-reference")
    dropped = [torch.load(folder / f"{name}.{rank}.pt")["dropped"] for rank in range(2)]
    assert all(share > 0.1 if name == "dropping-step" else share == 0 for share in dropped)


def test_loss_and_gradients_of_shared_out_sequences_equal_those_of_one_process(folder: Path) -> None:
    assert_gradients(folder, "divided-step", "divided-reference")
    loss = torch.load(folder / "divided-reference.pt")["loss"]
    for rank in range(2):
        step = torch.load(folder / f"divided-step.{rank}.pt")
        assert step["loss"] == pytest.approx(loss, rel=1e-6)
        # To heads and back in each layer, forward and backward: none is done again.
        expected = [[layer, backward] for layer in range(3) for backward in (False, True) for _ in range(2)]
        assert sorted(step["heads"]) == expected


def assert_gradients(folder: Path, name: str, expected_name: str) -> None:
    reference = torch.load(folder / f"{expected_name}.pt")
    step = [torch.load(folder / f"{name}.{rank}.pt") for rank in range(2)]
    assert step[0]["norm"] == step[1]["norm"] == pytest.approx(reference["norm"], rel=1e-5)
    assert_same_gradients(step, reference)


def assert_same_gradients(ranks: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """Together, the ranks have each element of the gradient once."""
    seen = dict.fromkeys(reference["gradients"], 0)
    for rank in ranks:
        for key, gradient in rank["gradients"].items():
            name, start = key.rsplit(":", 1)
            expected = reference["gradients"][name].flatten()[int(start) : int(start) + gradient.numel()]
            torch.testing.assert_close(gradient, expected, rtol=2e-4, atol=2e-7)
            seen[name] += gradient.numel()
    assert seen == {name: gradient.numel() for name, gradient in reference["gradients"].items()}


def test_an_update_is_the_same_whatever_zero_shares_out(folder: Path, step: list[dict[str, Any]]) -> None:
    for rank, partitioned in enumerate(step):
        weights = torch.load(folder / f"whole-step.{rank}.pt")["weights"]
        assert weights.keys() == partitioned["weights"].keys()
        for name, expected in partitioned["weights"].items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-7)


def test_a_document_of_32k_tokens_that_ranks_share_has_the_loss_that_one_rank_finds(folder: Path) -> None:
    loss = read(folder, "long-alone")
    for rank in range(2):
        long = read(folder, "long", rank)
        assert long["loss"] == pytest.approx(loss, rel=1e-5)
        assert long["planned"] / 2 < long["took"] < long["planned"]


def test_ranks_hold_different_experts_and_the_same_of_all_else(step: list[dict[str, Any]]) -> None:
    first, second = (set(rank["weights"]) for rank in step)
    assert {name.split(".experts.")[1][0] for name in first - second} == {"0", "1"}
    assert {name.split(".experts.")[1][0] for name in second - first} == {"2", "3"}
    for name in first & second:
        assert torch.equal(step[0]["weights"][name], step[1]["weights"][name]), name


def test_what_deepspeed_gathers_counts_as_communication_once(folder: Path) -> None:
    for rank in range(2):
        assert read(folder, "gathered", rank) == [1, True]


def test_tokens_travel_while_attention_and_the_residual_mlp_run(step: list[dict[str, Any]]) -> None:
    # Two chunks: the second one's dispatch is under way while the first one's experts run, which is before its launch.
    experts = ["wait", "launch"] * 2
    counts = ["launch", "wait"]
    forward = counts + ["launch"] * 2 + ["self_attn"] + experts + ["residual_mlp"] + ["wait"] * 2
    backward = ["launch"] * 2 + ["residual_mlp back"] + experts + ["self_attn back"] + ["wait"] * 2
    for rank in step:
        assert rank["events"] == (forward + backward) * 2  # micro-batches


def test_experts_and_ranks_that_never_get_a_token_hold_nobody_up_and_change_nothing(folder: Path) -> None:
    ranks = [torch.load(folder / f"forced.{rank}.pt") for rank in range(4)]
    reference = torch.load(folder / "forced-reference.pt")
    first = [rank["steps"][0] for rank in ranks]
    assert [step["norm"] for step in first] == [pytest.approx(reference["norm"], rel=1e-5)] * 4
    assert_same_gradients(first, reference)
    for rank in ranks:
        losses = [step["loss"] for step in rank["steps"]]
        assert losses == sorted(losses, reverse=True)
    for mine, copy in ((0, 2), (1, 3)):
        for name, weight in ranks[mine]["weights"].items():
            assert torch.equal(weight, ranks[copy]["weights"][name]), name


def test_a_run_that_was_stopped_ends_with_the_same_bits_as_one_left_alone(folder: Path) -> None:
    stopped = read(folder, "stopped")
    assert (stopped["outcome"], stopped["step"], stopped["checkpoint"]["step"]) == ("interrupted", 6, 6)
    for name in ("stopped", "damaged"):
        assert_same_end(folder, name)


def assert_same_end(folder: Path, name: str, other: str = "whole", step: int = 8) -> None:
    final = Path("checkpoints") / f"step-{step:010}"
    for shard in sorted((folder / other / final).glob("*.safetensors")):
        expected, found = load_file(shard), load_file(folder / name / final / shard.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    exported = Path("export") / "model.safetensors"
    assert (folder / other / exported).read_bytes() == (folder / name / exported).read_bytes()


def test_a_run_without_room_for_its_activations_ends_with_the_same_bits(folder: Path) -> None:
    assert_same_end(folder, "paused")
    told = [state["training"] for state in read(folder, "paused")["states"]]
    assert all(state["recomputes"] for state in told[1:])
    assert len({state["plannedMemoryBytes"] for state in told}) == 1


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(folder: Path) -> None:
    whole, undamaged = read(folder, "whole"), read(folder, "undamaged")
    assert undamaged["loss"] == whole["loss"]
    assert undamaged["outcome"] == "succeeded"


def test_a_batch_that_was_edited_in_the_middle_of_a_run_is_refused_on_all_ranks(folder: Path) -> None:
    refusal = read(folder, "edited")
    assert refusal["reason"] == "CheckpointMismatch"
    assert "tokensPerStep of curriculum.stages[0] 128, and the manifest says 256" in refusal["message"]
    assert read(folder, "edited", 1) == refusal


def test_an_update_that_was_left_out_is_left_out_after_a_restart_too(folder: Path) -> None:
    whole, resumed = read(folder, "skipped"), read(folder, "skipped-resumed")
    assert whole["loss"] == resumed["loss"] != read(folder, "whole")["loss"]
    assert_same_end(folder, "skipped-stopped", "skipped")


def test_a_stage_without_any_update_ends_a_run_as_diverged(folder: Path) -> None:
    diverged = read(folder, "diverged")
    assert diverged["message"].startswith("the gradient was not finite 4 times in a row, up to step 4 of stage first")
    assert read(folder, "diverged", 1) == diverged


def test_a_checkpoint_that_takes_longer_than_the_time_to_the_next_holds_nobody_up(folder: Path) -> None:
    assert read(folder, "slow-commit")["outcome"] == "succeeded"
    assert "step 2 is put off" in (folder / "log.refusals.0").read_text()
    assert_same_end(folder, "slow-commit")


def test_a_checkpoint_that_was_put_off_is_written_during_a_pause(folder: Path) -> None:
    assert read(folder, "put-off") == {"committed": True, "replies": [{"answer": {}}] * 2}
    assert_same_end(folder, "put-off")


def test_the_reduced_loss_is_identical_on_all_ranks(folder: Path) -> None:
    for name in ("whole", "stopped", "resumed"):
        first, second = read(folder, name), read(folder, name, 1)
        assert first["loss"] == second["loss"]
        assert first["evaluation"] == second["evaluation"] if "evaluation" in first else name == "stopped"


def test_a_pause_changes_nothing_but_the_time(folder: Path) -> None:
    assert_same_end(folder, "paused")
    phases = [state["phase"] for state in read(folder, "paused")["states"]]
    assert phases == ["STARTING"] + ["RUNNING"] * 3 + ["PAUSED"] + ["RUNNING"] * 5 + ["EXPORTING", "DONE"]


def test_commands_are_answered_when_they_are_done(folder: Path) -> None:
    replies = read(folder, "paused")["replies"]
    assert [reply["answer"] for reply in replies if reply.get("answer") == {}] == [{}, {}]
    assert [reply["refusal"] for reply in replies if "refusal" in reply] == ["This rank of a training can't profile."]
    committed = [reply["answer"] for reply in replies if reply.get("answer")]
    # Asked for at step 5; the one that is due at 6 may be committed before the answer is given, and names the newest.
    assert [answer["step"] for answer in committed] in ([3, 5], [3, 6])
    assert [int(answer["uri"][-10:]) for answer in committed] == [answer["step"] for answer in committed]
    assert read(folder, "paused", 1)["replies"] == [{"refusal": "This rank of a training can't checkpoint."}]


def test_a_run_that_is_told_to_end_with_a_stage_succeeds_after_it_with_its_export(folder: Path) -> None:
    early = read(folder, "stopped-early")
    for report in (early["report"], read(folder, "stopped-early-again")):
        assert (report["outcome"], report["step"], report["checkpoint"]["step"]) == ("succeeded", 4, 4)
        assert report["message"] == "stage first is done, with which the training was to end"
        assert report["exportUri"] == f"file://{folder}/stopped-early/export"
    assert early["replies"] == [
        {"refusal": "This training has no stage 'third': it has first, second."},
        {"answer": {}},
        {"answer": {}},
    ]
    assert early["states"][-1]["training"]["stopAfter"] == "first"
    assert read(folder, "stopped-early", 1)["replies"] == [{"refusal": "This rank of a training can't stop_after."}]


def test_a_run_is_judged_at_every_so_many_steps_the_last_of_a_stage_among_them(folder: Path) -> None:
    curve = read_lines(folder / "stopped-early" / "evaluation" / "curve.jsonl")
    assert [point["step"] for point in curve][:2] == [2, 4]


def test_the_update_of_a_loss_that_jumps_is_left_out(folder: Path) -> None:
    assert read(folder, "jump-skip")["outcome"] == "succeeded"
    assert_same_end(folder, "jump-skip", "left-out", step=20)
    _, began, event = (json.loads(line) for line in (folder / "jump-skip" / "events.jsonl").read_text().splitlines())
    assert (began["kind"], began["step"], began["ranks"]) == ("AttemptBegan", 15, 2)
    assert (event["kind"], event["step"], event["policy"]) == ("LossSpike", 18, "skip")
    assert event["loss"] > event["limit"]


def test_a_run_that_goes_back_passes_over_the_data_up_to_the_jump_also_after_a_restart(folder: Path) -> None:
    assert_same_end(folder, "jump-rollback", "passed-over", step=20)


def test_a_run_whose_only_checkpoint_is_given_up_as_its_loss_jumps_leaves_the_update_out(folder: Path) -> None:
    assert_same_end(folder, "jump-at-first-checkpoint", "left-out", step=20)
    _, jump = read_lines(folder / "jump-at-first-checkpoint" / "events.jsonl")
    assert (jump["kind"], jump["step"]) == ("LossSpike", 18)


def test_a_run_that_stops_at_a_jump_keeps_its_last_step_and_goes_on_once_it_is_edited(folder: Path) -> None:
    refusal = read(folder, "jump-stop")
    assert refusal["reason"] == "LossSpike"
    assert "at step 18 of stage first" in refusal["message"]
    assert "the checkpoint of step 17 is from before it" in refusal["message"]
    assert read(folder, "jump-stop", 1) == refusal
    assert_same_end(folder, "jump-stop", "left-out", step=20)


def test_the_journal_has_what_each_stage_came_to(folder: Path) -> None:
    lines = that_hold(read_lines(folder / "whole" / "journal.jsonl"))
    ends = {line["step"]: line for line in lines if line["step"] in (4, 8)}
    assert [ends[step]["stage"] for step in (4, 8)] == ["first", "second"]
    last = ends[8]
    assert (last["tokens"], last["loss"], last["attempt"]) == (1024, read(folder, "whole")["loss"], 1)
    assert last["tokens_per_second"] > 0
    assert 0 < last["mfu"] < 1
    assert all(seconds > 0 for part, seconds in last["seconds"].items() if part != "pause")
    assert last["loss_by_source"].keys() == last["epochs"].keys() == {"books", "programs"}
    began = read_lines(folder / "whole" / "events.jsonl")[0]
    assert [source["name"] for source in began["sources"]] == ["books", "programs"]
    assert all(source["plannedEpochs"] == last["epochs"][source["name"]] for source in began["sources"])
    assert min(last["loss_by_source"].values()) < 5 < max(last["loss_by_source"].values()) + 1
    (router,) = last["routers"]
    assert router["layer"] == 1
    assert sum(router["load"]) == pytest.approx(1)
    assert (len(router["load"]), router["dropped"], 0 < router["entropy"] <= 1) == (4, 0, True)
    exchanges = {(it["layer"], it["kind"], it["backward"]) for it in last["exposed_communication"]}
    kinds = [("counts", False), ("dispatch", False), ("combine", False), ("combine", True), ("dispatch", True)]
    zero = {(None, "gradients", True), (None, "update", False)}
    assert exchanges == {(1, *kind) for kind in kinds} | zero
    for it in last["exposed_communication"]:
        assert it["in_flight"] > 0
        assert it["layer"] is not None or it["exposed"] == it["in_flight"]
    assert list((folder / "whole" / "tensorboard").glob("events*"))
    resumed = that_hold(read_lines(folder / "stopped" / "journal.jsonl"))
    assert resumed[-1]["attempt"] == 2
    assert resumed[-1]["loss"] == last["loss"]


def test_a_run_that_begins_paused_makes_no_step_before_it_is_resumed(folder: Path) -> None:
    starting, *states = read(folder, "stopped-early")["states"]
    assert starting["phase"] == "STARTING"
    assert (states[0]["phase"], states[0]["training"].get("step")) == ("PAUSED", None)
    assert [state["phase"] for state in states[1:]] == ["RUNNING"] * 4 + ["EXPORTING", "DONE"]


def test_a_run_that_ended_with_a_stage_goes_on_to_the_same_end_once_that_wish_is_gone(folder: Path) -> None:
    assert read(folder, "stopped-early-goes-on")["step"] == 8
    assert_same_end(folder, "stopped-early")


def test_a_stage_that_is_extended_half_way_ends_as_if_it_had_been_so_long_from_the_first(folder: Path) -> None:
    assert read(folder, "extended")["stages"][1]["tokens"] == 512
    assert_same_end(folder, "extended", "not-extended")


def test_the_published_state_is_that_of_the_world(folder: Path) -> None:
    last = read(folder, "paused")["states"][-1]["training"]
    report = read(folder, "paused")["report"]
    assert (last["stage"], last["step"], last["tokens"], last["loss"]) == ("second", "8", "1024", report["loss"])
    assert last["lastCheckpoint"]["step"] == "8"
    for shown, told in zip(last["stages"], report["stages"], strict=True):
        keys = ("name", "validationLoss", "initialValidationLoss", "checkpoint", "startTime", "completionTime")
        assert [shown[key] for key in keys] == [told[key] for key in keys]
    assert read(folder, "paused", 1)["states"] == []


def test_a_rank_takes_no_more_memory_than_is_planned_and_no_less_than_half(folder: Path) -> None:
    took = read(folder, "memory")
    assert set(took) == {"True", "False"}
    for real, planned in took.values():
        assert planned / 2 < real < planned


def test_another_world_goes_on_with_the_same_curve(folder: Path) -> None:
    whole, other = read(folder, "whole"), read(folder, "other-world")
    assert other["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    for mine, theirs in zip(other["stages"], whole["stages"], strict=True):
        assert mine["validationLoss"] == pytest.approx(theirs["validationLoss"], rel=1e-4)


def test_a_run_that_changes_its_world_twice_learns_the_same(folder: Path) -> None:
    """2 nodes x ep 2, sharing out sequences and no optimizer's state; 1 x ep 1; 2 x ep 2 with partitions."""
    whole, back = read(folder, "whole"), read(folder, "and-back")
    assert back["outcome"] == "succeeded"
    assert back["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    for mine, theirs in zip(back["stages"], whole["stages"], strict=True):
        for moment in ("initialValidationLoss", "validationLoss"):
            assert mine[moment] == pytest.approx(theirs[moment], rel=1e-3)
    shards = {path.name for path in (folder / "and-back" / "checkpoints").glob("*/shard-*")}
    assert {name[-20:] for name in shards} == {"of-00001.safetensors", "of-00002.safetensors"}
    expected, exported = (load_file(folder / run / "export" / "model.safetensors") for run in ("whole", "and-back"))
    for name, tensor in expected.items():
        torch.testing.assert_close(exported[name], tensor, rtol=2e-2, atol=1e-3)


def test_a_run_that_goes_on_in_fp8_comes_near_to_the_same_and_exports_the_same_tensors(folder: Path) -> None:
    whole, rounded = read(folder, "whole"), read(folder, "rounded")
    assert rounded["outcome"] == "succeeded"
    assert rounded["loss"] == pytest.approx(whole["loss"], rel=1e-2)
    assert rounded["loss"] != pytest.approx(whole["loss"], rel=1e-6)  # it is no run in full
    expected, exported = (load_file(folder / run / "export" / "model.safetensors") for run in ("whole", "rounded"))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in exported.items()
    }


def test_a_store_that_is_full_for_a_while_costs_checkpoints_and_nothing_else(folder: Path) -> None:
    assert read(folder, "full")["report"]["outcome"] == "succeeded"
    assert "rank 1 could not write the checkpoint of step" in (folder / "log.refusals.1").read_text()
    [reply] = read(folder, "full-replies")
    assert reply["refusal"].startswith("there is no room left for ")
    assert_same_end(folder, "full")
    assert list((folder / "full" / "staging").glob("*/*")) == []


def test_a_store_that_is_full_at_a_stages_end_ends_all_ranks_with_the_same_sentence(folder: Path) -> None:
    message = read(folder, "full-at-end")["message"]
    assert message.startswith("there is no room left for ")
    assert read(folder, "full-at-end", 1)["message"] == message
    assert read(folder, "room-again")["outcome"] == "succeeded"
    assert_same_end(folder, "full-at-end")


def test_the_report_says_what_was_done(folder: Path) -> None:
    report = read(folder, "whole")
    assert (report["outcome"], report["step"], report["tokens"], report["epoch"]) == ("succeeded", 8, 1024, 1)
    assert report["exportUri"] == f"file://{folder}/whole/export"
    assert report["checkpoint"]["uri"] == f"file://{folder}/whole/checkpoints/step-0000000008"
    assert [(stage["name"], stage["tokens"]) for stage in report["stages"]] == [("first", 512), ("second", 512)]
    for stage in report["stages"]:
        assert stage["validationLoss"] < stage["initialValidationLoss"]
        assert stage["startTime"] <= stage["completionTime"]
    assert set(report["evaluation"]) == {"perplexity/code", "perplexity/general"}
    assert read(folder, "whole", 1).get("checkpoint") is None
    lines = [json.loads(line) for line in (folder / "whole" / "stages.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["moment"], line["category"]) for line in lines] == [
        ("first", "start", "general"),
        ("first", "end", "general"),
        ("second", "start", "code"),
        ("second", "end", "code"),
    ]


def test_the_last_of_each_stage_and_the_newest_checkpoints_are_kept(folder: Path) -> None:
    steps = sorted(int(path.name[5:]) for path in (folder / "whole" / "checkpoints").iterdir())
    assert steps == [4, 6, 8]


def test_the_export_is_a_whole_model_in_the_published_layout(folder: Path) -> None:
    exported = folder / "whole" / "export"
    config = ArcticConfig.from_folder(exported)
    tensors = load_file(exported / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tensor_shapes(config)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    encoder = TextEncoder(exported)
    assert (config.bos_token_id, config.eos_token_id) == (encoder.bos, encoder.eos)
    with torch.device("meta"):
        model = ArcticModel(config)
    load_weights(model, exported)
    assert model(torch.tensor([encoder.tokenizer.encode("x7 = f(1)").ids])).isfinite().all()


def shards(folder: Path, run: str) -> dict[str, torch.Tensor]:
    files = sorted((folder / run / "checkpoints" / "step-0000000008").glob("*.safetensors"))
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def test_a_checkpoint_of_an_adapter_holds_nothing_of_the_weights_that_it_stands_on(folder: Path) -> None:
    kept = {name.split(":")[3].rsplit(".", 2)[1] for name in shards(folder, "adapter") if not name.endswith(":rng")}
    assert kept == {"lora_A", "lora_B"}


def test_an_adapter_that_was_stopped_ends_with_the_same_bits_as_one_left_alone(folder: Path) -> None:
    expected, found = shards(folder, "adapter"), shards(folder, "adapter-stopped")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_adapter_learns_and_is_exported_alone_or_merged_with_the_same_numbers(folder: Path) -> None:
    report = read(folder, "adapter")
    assert all(stage["validationLoss"] < stage["initialValidationLoss"] for stage in report["stages"])
    base, made = (load_file(folder / name / "model.safetensors") for name in ("base", "adapter-stopped/export"))
    additions = read_adapter(folder / "adapter" / "export", ArcticConfig.from_folder(folder / "base"))
    moved = {name for name in base if not torch.equal(base[name], made[name])}
    assert moved == {f"{name}.weight" for name in additions}
    for name, added in additions.items():
        expected = merged(base[f"{name}.weight"], added.a, added.b, added.scale).bfloat16()
        assert torch.equal(made[f"{name}.weight"], expected), name
    assert TextEncoder(folder / "adapter" / "export").eos is not None
    assert not (folder / "adapter" / "export" / "config.json").exists()


def test_an_export_goes_on_with_sequences_longer_than_its_positions(folder: Path) -> None:
    report = read(folder, "longer")
    assert (report["outcome"], report["step"]) == ("succeeded", 3)
    [stage] = report["stages"]
    assert stage["validationLoss"] < stage["initialValidationLoss"]
    config = ArcticConfig.from_folder(folder / "longer" / "export")
    assert config.max_position_embeddings == 160
    assert config.rope_scaling == {"type": "yarn", "factor": 2.5, "original_max_position_embeddings": 64}


def test_the_last_checkpoint_of_what_began_from_other_weights_is_the_model_that_is_exported(
    folder: Path, tmp_path: Path
) -> None:
    write_model(folder / "longer" / "checkpoints" / "step-0000000003", tmp_path)
    exported = folder / "longer" / "export"
    made, expected = load_file(tmp_path / "model.safetensors"), load_file(exported / "model.safetensors")
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in made)
    assert ArcticConfig.from_folder(tmp_path) == ArcticConfig.from_folder(exported)


def test_an_adapter_does_not_go_on_when_the_weights_below_it_have_changed(folder: Path) -> None:
    refusal = read(folder, "other-base")
    assert refusal["reason"] == "CheckpointMismatch"
    assert "the adapter of the checkpoint of step 8 was trained on" in refusal["message"]
    assert read(folder, "other-base", 1) == refusal


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("missing source", "SourceNotFound: source programs: no text file at"),
        ("experts", "InvalidSpec: expertParallel"),
        ("batch", "InvalidSpec: tokensPerStep is 160"),
        ("vocabulary", "VocabularyTooLarge: the tokenizer has 300 entries and the model's vocab_size is 260"),
        ("positions", "InvalidSpec: sequenceLength is 16"),
    ],
)
def test_bad_input_is_refused_in_the_same_words_on_all_ranks(folder: Path, case: str, says: str) -> None:
    first, second = read(folder, "refusals"), read(folder, "refusals", 1)
    assert first[case].startswith(says)
    assert first == second


def test_a_fine_tuning_on_conversations_learns_their_answers_and_nothing_else(folder: Path) -> None:
    made = read(folder, "instructed")
    spec, report = ArcticTrainingSpec.model_validate(made["spec"]), made["report"]
    assert (report["outcome"], report["step"]) == ("succeeded", 4)
    [stage], [source] = report["stages"], report["sources"]
    assert stage["validationLoss"] < stage["initialValidationLoss"]
    assert (source["documents"], source["skipped"]) == (40, 1)
    [place] = (folder / "instructed" / "data").glob("chats-*")
    streams = open_streams([Prepared("chats", "instruction", place)], "train")
    data = TrainingData(curriculum := Curriculum.plan(spec), streams, spec.seed)
    [batch] = data.micro_batches(curriculum.stages[0], 0, 0, 1, 4)
    encoder = TextEncoder(folder / "instructed" / "export")
    answers = encoder.tokenizer.decode(batch.labels[batch.labels != IGNORED].tolist(), skip_special_tokens=False)
    assert answers == f" {ANSWER}\n</s>" * answers.count(ANSWER) != ""
    with torch.device("meta"):
        model = ArcticModel(ArcticConfig.from_folder(folder / "adapter-stopped" / "export"))
    load_weights(model, folder / "adapter-stopped" / "export")
    assert made["states"][1]["loss"] == pytest.approx(loss_alone(model, batch), rel=1e-4)


def loss_alone(model: ArcticModel, batch: MicroBatch) -> float:
    """The mean loss of a batch's labels, each of its documents computed by itself."""
    losses = []
    for tokens, labels, starts in zip(batch.tokens, batch.labels, batch.starts, strict=True):
        for begin, end in pairwise([*starts, len(tokens)]):
            logits = model(torch.from_numpy(tokens[None, begin:end]))[0]
            wanted = torch.from_numpy(labels[begin:end])
            losses += cross_entropy(logits, wanted, reduction="none")[wanted != IGNORED].tolist()
    return mean(losses)
