"""`arctic plan`: from files to figures, sentences and exit codes."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from api_cases import INFERENCE, TRAINING, Changes, apply_changes
from click.testing import CliRunner, Result

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import run_folder
from arctic_cli import machine
from arctic_cli.local import inference_groups, local_uid
from arctic_cli.main import main
from arctic_cli.plan.serving import serving_of
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.parallel import plan_inference
from arctic_model.planning import serving_time, training_time
from arctic_model.planning.costs import Costs
from arctic_model.planning.devices import GIB, cpu
from arctic_model.planning.serving import PAGE, plan_serving
from arctic_model.weights import save_model
from arctic_workers.inference.engines.native import runner
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.memory import affordable_blocks

ROOT = Path(__file__).parents[3]
ARCTIC = ROOT / "examples" / "arctic-inference.yaml"


@pytest.fixture(autouse=True)
def machine_of_64_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "arctic_cli.plan.choice.this_machine", lambda: cpu(memory=64 * GIB, bandwidth=10e9, fp32_flops=1e11)
    )


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)])


def planned(*arguments: object) -> dict[str, Any]:
    result = plan(*arguments, "-o", "json")
    assert result.stderr == ""
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def written(folder: Path, changes: Changes, base: dict[str, Any] = INFERENCE) -> Path:
    file = folder / f"{base['kind']}.yaml"
    file.write_text(json.dumps(apply_changes(base, changes)))
    return file


GPU = {
    "spec.engine": {"name": "tensorrt-llm"},
    "spec.quantization": {"weights": "bf16"},
    "spec.parallelism": {"tensor": 8, "pipeline": 1},
}


def test_the_example_of_the_published_model_fits_on_two_nodes() -> None:
    result = plan("-f", ARCTIC, "--preset", "arctic")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "arctic (preset arctic): 478.6B parameters, a token uses 17.3B" in result.stdout
    assert "tensor 8 x pipeline 2 = 16 devices (H100 80GB SXM) on 2 nodes" in result.stdout
    assert "= weights                         29.190     30.876" in result.stdout
    assert "It fits: 4,800,221 tokens of keys and values" in result.stdout
    assert "a limit, no measurement" in result.stdout


def test_the_guide_shows_what_is_printed(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "plan.md").read_text()
    assert plan("-f", ARCTIC, "--preset", "arctic").stdout in guide
    training = plan("-f", ROOT / "examples" / "arctic-training.yaml", "--device", "h200")
    assert training.stdout in guide
    narrow = tmp_path / "fp8.yaml"
    narrow.write_text(ARCTIC.read_text().replace("kvCache: bf16", "kvCache: fp8"))
    content = planned("-f", narrow, "--preset", "arctic")
    assert f"With `kvCache: fp8` it is {content['kvTokens']:,} tokens, {content['sequences']:,} requests." in guide


def test_neighbouring_ranks_that_are_alike_share_a_column(tmp_path: Path) -> None:
    file = written(tmp_path, {**GPU, "spec.parallelism": {"tensor": 8, "pipeline": 12}})
    lines = plan("-f", file, "--preset", "arctic").stdout.splitlines()
    assert [line.split()[-3:] for line in lines[4:6]] == [["1-10", "rank", "11"], ["0-1", "2-31", "32-34"]]


def test_both_outputs_say_the_same() -> None:
    content = planned("-f", ARCTIC, "--preset", "arctic", "--device", "h200")
    text = plan("-f", ARCTIC, "--preset", "arctic", "--device", "h200").stdout
    assert f"It fits: {content['kvTokens']:,} tokens" in text
    assert content["group"] == {"tensor": 8, "pipeline": 2, "nodes": 2, "devices": 16}
    for rank in content["ranks"]:
        assert f"{(sum(rank['weights'].values()) + rank['scales']) / 1e9:.3f}" in text
        assert rank["kvTokens"] == rank["kvBytes"] // rank["kvBytesPerToken"]
        used = sum(rank["weights"].values()) + rank["scales"] + rank["activations"] + rank["runtime"]
        assert used + rank["left"] == rank["memory"]
    assert content["kvTokens"] == min(rank["kvTokens"] for rank in content["ranks"])
    assert set(content["otherDevices"]) == {"a100", "h100", "b200"}


def test_what_does_not_fit_exits_1_and_the_advice_taken_fits(tmp_path: Path) -> None:
    file = written(tmp_path, GPU)
    result = plan("-f", file, "--preset", "arctic")
    assert result.exit_code == 1
    (rank,) = planned("-f", file, "--preset", "arctic")["ranks"]
    assert f"It does not fit: {-rank['left'] / 1e9:.3f} GB too much on a device, before any keys" in result.stdout
    assert "write quantization.weights: fp8: then" in result.stdout
    for change in planned("-f", file, "--preset", "arctic")["changes"]:
        changed = {f"spec.{path}": value for path, value in change["fields"].items()}
        again = planned("-f", written(tmp_path, copy.deepcopy(GPU) | changed), "--preset", "arctic")
        assert (again["fits"], again["kvTokens"]) == (True, change["kvTokens"])


def test_where_nothing_helps_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arctic_cli.plan.choice.this_machine", lambda: cpu(memory=8 * GIB, bandwidth=10e9))
    result = plan("-f", written(tmp_path, {}), "--preset", "arctic")
    assert result.exit_code == 1
    assert "Nothing that the manifest may say makes it fit: take devices with more memory." in result.stdout


def test_nothing_is_advised_that_validate_would_refuse(tmp_path: Path) -> None:
    file = written(tmp_path, {"spec.engine": {"name": "native"}, "spec.quantization": {"kvCache": "fp32"}})
    changes = planned("-f", file, "--preset", "arctic")["changes"]
    assert changes
    assert all(change["fields"].get("parallelism.tensor", 1) == 1 for change in changes)


def test_tensor_ranks_of_the_native_engine_share_a_machine(tmp_path: Path) -> None:
    alone = planned("-f", written(tmp_path, {"spec.parallelism": {"pipeline": 2}}), "--preset", "arctic-tiny")
    file = written(tmp_path, {"spec.parallelism": {"tensor": 3, "pipeline": 2}})
    content = planned("-f", file, "--preset", "arctic-tiny")
    assert content["group"] == {"tensor": 3, "pipeline": 2, "nodes": 2, "devices": 2}
    assert (content["fits"], content["ranks"]) == (True, alone["ranks"])
    assert any("shares of one machine" in note for note in content["notes"])
    assert not any("shares of one machine" in note for note in alone["notes"])


def test_refusals_of_validate_are_said_beside_the_plan(tmp_path: Path) -> None:
    file = written(tmp_path, {"spec.engine": {"cacheClaim": "cache"}})
    content = planned("-f", file, "--preset", "arctic-tiny")
    assert content["fits"]
    assert any("arctic validate refuses this manifest: spec.engine.cacheClaim" in note for note in content["notes"])


def test_the_model_comes_from_the_manifest_of_its_training(tmp_path: Path) -> None:
    inference = written(tmp_path, {"spec.model": {"training": "tiny"}})
    tokenizer = {"spec.tokenizer": {"train": {"vocabSize": 1000}}}
    for changes, vocabulary in ((tokenizer, 1000), ({"spec.tokenizer": {"uri": "file:///t"}}, 8192)):
        training = written(tmp_path, changes, TRAINING)
        content = planned("-f", inference, "-f", training)
        assert content["ranks"][0]["weights"]["embedding"] == vocabulary * 128 * 4
        assert content["model"]["source"] == "preset arctic-tiny"
    config = ArcticConfig.preset("arctic-tiny").replace(vocab_size=77).to_dict()
    training = written(tmp_path, {"spec.model": {"config": config}}, TRAINING)
    assert planned("-f", inference, "-f", training)["ranks"][0]["weights"]["embedding"] == 77 * 128 * 4


def test_the_model_comes_from_the_export_of_a_local_training(tmp_path: Path) -> None:
    run = run_folder("", "default", "tiny", local_uid("default", "tiny")).lstrip("/")
    export = tmp_path / "volumes" / "store" / run / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text(json.dumps(ArcticConfig.preset("arctic-tiny").to_dict()))
    file = written(tmp_path, {"spec.model": {"training": "tiny"}})
    assert planned("-f", file, "--volumes", tmp_path / "volumes")["model"]["source"] == str(export)


def test_an_export_is_found_from_wherever_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder("", "default", "tiny", local_uid("default", "tiny")).lstrip("/")
    export = tmp_path / "volumes" / "store" / run / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text(json.dumps(ArcticConfig.preset("arctic-tiny").to_dict()))
    file = written(tmp_path, {"spec.model": {"training": "tiny"}})
    monkeypatch.chdir(tmp_path)
    assert planned("-f", file, "--volumes", "volumes")["model"]["source"] == str(export)


@pytest.mark.parametrize(
    ("manifest", "kind", "field"),
    [
        ({"spec.model": {"training": "other"}}, INFERENCE, "spec.model.training"),
        ({"spec.model": {"from": {"training": "other"}}}, TRAINING, "spec.model.from.training"),
    ],
)
def test_a_training_that_has_exported_nothing_here_is_named_by_its_field(
    tmp_path: Path, manifest: dict[str, Any], kind: dict[str, Any], field: str
) -> None:
    result = plan("-f", written(tmp_path, manifest, kind), "--volumes", tmp_path)
    assert result.exit_code == 64
    assert f"{field}: no export of 'other'" in result.stderr


def test_the_model_that_a_training_starts_from_may_be_in_one_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    writer = gguf.GGUFWriter(tmp_path / "llama.gguf", "llama")
    for name, value in {
        "block_count": 1, "context_length": 512, "embedding_length": 32, "feed_forward_length": 64, "head_count": 4,
        "head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 5000.0,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    for name, shape in {
        "token_embd": (40, 32), "output_norm": (32,), "output": (40, 32), "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }.items():  # fmt: skip
        writer.add_tensor(f"{name}.weight", generator.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = tmp_path / "llama.gguf"
    training = written(tmp_path, {"spec.model": {"from": {"uri": file.as_uri()}}}, TRAINING)
    assert planned("-f", training)["model"]["source"] == str(file)


def test_the_model_comes_from_a_folder_of_a_claim(tmp_path: Path) -> None:
    folder = tmp_path / "volumes" / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(ArcticConfig.preset("arctic-small").to_dict()))
    changes = {
        "spec.model": {"uri": "file:///mnt/models/small"},
        "spec.template": {"volumes": [{"claimName": "models", "mountPath": "/mnt/models"}]},
    }
    content = planned("-f", written(tmp_path, changes), "--volumes", tmp_path / "volumes")
    assert (content["model"]["source"], content["model"]["parameters"]) == (str(folder), 96_530_944)


def test_weights_that_are_in_fp8_already_are_planned(tmp_path: Path) -> None:
    config = {**ArcticConfig.preset("arctic-small").to_dict(), "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = written(tmp_path, {"spec.model": {"uri": tmp_path.as_uri()}})
    assert plan("-f", file).exit_code == 0


def test_the_model_comes_from_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(ArcticConfig().to_dict()))
    content = planned("-f", ARCTIC, "--config", file)
    assert content["kvTokens"] == planned("-f", ARCTIC, "--preset", "arctic")["kvTokens"]


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({}, ["--preset", "arctic", "--device", "h300"], "'h300' is not one of 'a100', 'h100', 'h200', 'b200', 'cpu'"),
        ({}, ["--preset", "arctic", "--config", __file__], "--preset and --config both name the model: write one"),
        ({}, ["--config", __file__], "test_plan.py cannot be read as JSON"),
        ({"spec.model": {"uri": "hf://a/b"}}, [], "spec.model: hf://a/b names no folder of this machine; or name the"),
        ({"spec.model": {"uri": "file:///no/such"}}, [], "/no/such/config.json is not there: name a folder"),
        ({"spec.model": {"training": "no"}}, [], "no export of 'no' under"),
        ({"spec.engine": {"name": "nim"}}, [], "spec.engine.name: what nim loads is its container's"),
        ({"spec.modle": 1}, ["--preset", "arctic"], "spec.modle: unknown field; did you mean model?"),
        (GPU | {"spec.parallelism": {"tensor": 3}}, ["--preset", "arctic"], "tensor is 3 and does not divide"),
        (GPU | {"spec.parallelism": {"tensor": 16}}, ["--preset", "arctic"], "tensor is 16 and a node has 8 x H100"),
        (GPU, ["--preset", "arctic", "--devices-per-node", "4"], "tensor is 8 and a node has 4 x H100"),
        ({}, ["--preset", "arctic-tiny", "--devices-per-node", "4"], "--devices-per-node is for GPUs"),
        (
            {"spec.attention": {"maxLength": "unlimited"}},
            ["--preset", "arctic"],
            "keys and values have no bound; write",
        ),
        ({"spec.attention": {"maxLength": 4097}}, ["--preset", "arctic"], "4097 and the model has 4096 positions"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(
    changes: Changes, arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    result = plan("-f", written(tmp_path, changes), "--volumes", tmp_path, *arguments)
    assert result.exit_code in (2, 64)
    assert sentence in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_exactly_one_manifest_is_planned() -> None:
    files = ("-f", ROOT / "examples" / "tiny-training.yaml", "-f", ROOT / "examples" / "tiny-training.yaml")
    result = plan(*files)
    assert result.exit_code == 64
    assert "has 2 manifests that could be planned: write exactly one" in result.stderr


def serving(config: ArcticConfig, **attention: Any) -> Any:
    spec = apply_changes(INFERENCE, {"spec.attention": attention})["spec"]
    return serving_of(ArcticInferenceSpec.model_validate(spec), config)


def test_lengths_are_those_that_engines_take() -> None:
    config = ArcticConfig.preset("arctic-tiny")
    assert serving(config).max_length == 1024  # the default gives way
    assert serving(config, maxLength=2048, ropeScaling={"type": "yarn", "factor": 2}).max_length == 2048
    assert serving(config, window=100, sinks=4).visible == 104
    assert serving(config.replace(sliding_window=64)).visible == 64


@pytest.mark.parametrize(("engine", "scales"), [("native", 2 * 35 * 8 * 4), ("vllm", 0)])
def test_keys_and_values_in_fp8_have_scales_where_the_engine_keeps_them(
    tmp_path: Path, engine: str, scales: int
) -> None:
    file = written(tmp_path, {"spec.engine": {"name": engine}, "spec.quantization": {"kvCache": "fp8"}})
    [rank] = planned("-f", file, "--preset", "arctic", "--device", "cpu")["ranks"]
    assert rank["kvBytesPerToken"] == 71_680 + scales


@pytest.mark.parametrize(
    "attention",
    [
        {"maxLength": 1000},
        {"maxLength": "unlimited", "window": 100, "sinks": 4},
        {"maxLength": "unlimited", "window": 16},
        {"maxLength": 100_000, "window": 513, "sinks": 33},
        {"maxLength": 300, "window": 100, "sinks": 4},  # ends before a step's room beside the window is full
        {"maxLength": 104, "window": 100, "sinks": 4},  # never outgrows it
    ],
    ids=str,
)
def test_a_request_takes_the_blocks_that_the_native_engine_gives_it(attention: dict[str, Any], tmp_path: Path) -> None:
    config = ArcticConfig.preset("arctic-tiny")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    manifest = apply_changes(INFERENCE, {"spec.attention": attention, "spec.model": {"uri": tmp_path.as_uri()}})
    [group] = inference_groups(manifest, tmp_path, tmp_path)
    taken = plan_group(group).blocks_of_a_sequence * BLOCK_SIZE
    assert serving(config, **attention).sequence_tokens == -(-taken // PAGE) * PAGE


def test_other_engines_keep_what_is_seen() -> None:
    spec = apply_changes(INFERENCE, {"spec.attention": {"window": 100, "sinks": 4}, **GPU})["spec"]
    asked = serving_of(ArcticInferenceSpec.model_validate(spec), ArcticConfig.preset("arctic-tiny"))
    assert asked.sequence_tokens == 128


def bytes_resident(model: torch.nn.Module) -> int:
    """Bytes of all tensors that a model's modules have, wherever they keep them."""
    held: dict[int, torch.Tensor] = {}
    for module in model.modules():
        kept = [vars(module), *(value for value in vars(module).values() if isinstance(value, dict))]
        for tensor in (value for mapping in kept for value in mapping.values() if isinstance(value, torch.Tensor)):
            held[id(tensor)] = tensor
    return sum(tensor.nbytes for tensor in held.values())


@pytest.mark.parametrize("weights", ["fp8", "bf16", "fp32"])
def test_a_plan_for_this_machine_is_what_the_native_engine_takes(weights: str, tmp_path: Path) -> None:
    config = ArcticConfig.preset("arctic-tiny").replace(vocab_size=300, num_hidden_layers=3, moe_layer_frequency=2)
    model = ArcticModel(config)
    init_weights(model, seed=1)
    save_model(model.bfloat16(), tmp_path / "model")
    free = 100_000_000
    changes = {
        "spec.quantization": {"weights": weights, "kvCache": "fp32"},
        "spec.parallelism": {"pipeline": 2},
        "spec.batching": {"tokenBudget": 1, "maxSequences": 1},
    }
    asked = serving_of(ArcticInferenceSpec.model_validate(apply_changes(INFERENCE, changes)["spec"]), config)
    for index, part in enumerate(plan_inference(config, pipeline=2).slices):
        loaded = bytes_resident(runner.load_slice(tmp_path / "model", config, part, weights, lambda _: None))
        empty = plan_serving(asked, cpu(memory=0, bandwidth=None)).ranks[index]
        # The engine looks at what is free after loading, the plan at what is there before.
        memory = empty.runtime + empty.weights.total() + empty.scales.total() + free
        rank = plan_serving(asked, cpu(memory=memory, bandwidth=None)).ranks[index]
        assert rank.weights.total() + rank.scales.total() == loaded
        block_bytes = BLOCK_SIZE * rank.kv_bytes_per_token
        left = memory - rank.runtime - loaded
        blocks = affordable_blocks(left, fraction=0.9, block_bytes=block_bytes, most=1 << 40)
        # The engine pays for a step's activations with the share that keys and values don't get.
        promised = blocks - rank.kv_tokens // BLOCK_SIZE
        assert 0 <= promised <= rank.activations / block_bytes + 1


def test_this_machine_has_memory_and_reads_it() -> None:
    device = machine.this_machine()
    assert device.memory > 2**28
    assert device.bandwidth is not None
    assert 1e8 < device.bandwidth < 1e13


def test_a_plan_is_made_where_only_the_core_is_installed() -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(['cryptography', 'torch', 'numpy', 'kubernetes', 'grpc']))"
    run = f"from arctic_cli.main import main; main(['plan', '-f', '{ARCTIC}', '--preset', 'arctic'])"
    done = subprocess.run([sys.executable, "-c", f"{hidden}\n{run}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_training_is_planned_for_this_machine_unless_its_pods_have_gpus(tmp_path: Path) -> None:
    planned_here = planned("-f", ROOT / "examples" / "tiny-training.yaml")
    assert planned_here["device"]["title"] == "CPU of this machine"
    assert planned_here["fits"]
    assert [stage["steps"] for stage in planned_here["stages"]] == [98, 98, 74]
    for limits, title in (
        ({"nvidia.com/gpu": 8}, "H100 80GB SXM"),
        ({"nvidia.com/gpu.shared": 1}, "H100 80GB SXM"),
        ({"nvidia.com/gpu": 0}, "CPU of this machine"),
        ({"rdma/hca": 1, "smarter-devices/fuse": 1}, "CPU of this machine"),
    ):
        file = written(tmp_path, {"spec.resources": {"limits": limits}}, TRAINING)
        assert planned("-f", file)["device"]["title"] == title


def test_what_a_training_costs_is_said_at_an_assumed_utilization(tmp_path: Path) -> None:
    file = written(tmp_path, {"spec.pricePerGPUHour": "2.00"}, TRAINING)
    at_most = planned("-f", file, "--device", "h100")["mfuAtMost"]
    whole, half = (
        planned("-f", file, "--device", "h100", "--mfu", mfu)["assumed"] for mfu in (at_most / 2, at_most / 4)
    )
    assert half["costUSD"] == pytest.approx(2 * whole["costUSD"])
    assert whole["costUSD"] == pytest.approx(2.00 * whole["deviceHours"])
    dearer = planned("-f", file, "--device", "h100", "--mfu", at_most / 2, "--price", 4)["assumed"]
    assert dearer["costUSD"] == pytest.approx(2 * whole["costUSD"])


def test_no_training_is_said_to_take_less_than_the_limit(tmp_path: Path) -> None:
    file = written(tmp_path, {}, TRAINING)
    report = planned("-f", file, "--device", "h100", "--mfu", 1)
    assert report["mfuAtMost"] < 1
    assert report["assumed"]["mfu"] == report["mfuAtMost"]
    assert report["assumed"]["seconds"] == pytest.approx(report["secondsAtLeast"])
    assert "the limit (for 1):" in plan("-f", file, "--device", "h100", "--mfu", 1).stdout


def test_products_in_fp8_are_said_and_are_refused_where_a_device_or_a_model_has_none(tmp_path: Path) -> None:
    plain, faster = (
        planned("-f", written(tmp_path, changes, TRAINING), "--device", "h100")["secondsAtLeast"]
        for changes in ({}, {"spec.precision": "fp8"})
    )
    assert faster < plain
    file = written(tmp_path, {"spec.precision": "fp8"}, TRAINING)
    assert "bf16 with products in fp8" in plan("-f", file, "--device", "h100").stdout
    assert "A100 80GB SXM has no units for it" in plan("-f", file, "--device", "a100").stderr
    uneven = tmp_path / "config.json"
    uneven.write_text(json.dumps(ArcticConfig.preset("arctic-tiny").replace(intermediate_size=40).to_dict()))
    assert "intermediate_size is 40" in plan("-f", file, "--config", uneven, "--device", "h100").stderr


def test_a_training_that_does_not_fit_says_what_to_write(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {
            "spec.curriculum": {
                "stages": [
                    {"name": "s", "tokens": "1T", "mixture": {"books": 1}, "learningRate": {"peak": 1e-4}},
                ]
            },
            "spec.batch": {"tokensPerStep": 8388608},
            "spec.parallelism": {"nodes": 16, "processesPerNode": 8, "expertParallel": 128},
        },
        TRAINING,
    )
    result = plan("-f", file, "--preset", "arctic", "--device", "h100")
    assert result.exit_code == 1
    assert "It does not fit" in result.stdout
    assert "  write parallelism.nodes: 32, parallelism.expertParallel: 128: then " in result.stdout


def test_ranks_beyond_the_devices_of_a_node_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, {"spec.parallelism": {"processesPerNode": 16}}, TRAINING)
    result = plan("-f", file, "--device", "h100")
    assert result.exit_code == 64
    assert "spec.parallelism.processesPerNode is 16 and a node has 8 x H100" in result.stderr


def test_a_batch_is_bounded_and_priced(tmp_path: Path) -> None:
    batches = planned("-f", ARCTIC, "--preset", "arctic")["batches"]
    assert [each["batch"] for each in batches] == [1, 4, 16, 64, 256, 512]
    assert all(each["bound"] == "memory" for each in batches)
    result = plan("-f", ARCTIC, "--preset", "arctic", "--price", 3)
    assert "US dollars a million tokens, at 3 an hour" in result.stdout
    assert "arithmetic binds from" in result.stdout


def test_a_target_between_tokens_says_how_many_requests_keep_it_and_what_layout_does_best(tmp_path: Path) -> None:
    batching = {"targetInterTokenLatency": "30ms", "maxSequences": 64}
    file = written(tmp_path, {"spec.batching": batching, "spec.parallelism": {"pipeline": 2}})
    result = plan("-f", file, "--preset", "arctic-466m", "--device", "cpu")
    assert "Within 30 ms between tokens: at most " in result.stdout, result.stderr
    slow = written(tmp_path, {"spec.batching": batching | {"targetInterTokenLatency": "1ms"}})
    assert "not even one request" in plan("-f", slow, "--preset", "arctic-466m", "--device", "cpu").stdout


def test_costs_that_were_measured_predict_steps_of_one_rank_and_of_the_native_engine(tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    Costs(replace(training_time.TYPICAL, micro_batches=100.0), serving_time.TYPICAL).write(costs)
    alone = written(tmp_path, {"spec.parallelism": {"nodes": 1}, "spec.batch.microBatchSize": 8}, base=TRAINING)
    [step] = planned("-f", alone, "--costs", costs)["stepsPredicted"]
    assert step == pytest.approx(4 * 100, rel=0.05)  # 4,096 tokens in micro-batches of 8 x 128
    assert "By the costs of steps that were measured here" in plan("-f", alone, "--costs", costs).stdout
    assert planned("-f", alone)["stepsPredicted"] is None
    assert planned("-f", written(tmp_path, {}, base=TRAINING), "--costs", costs)["stepsPredicted"] is None
    one = {"spec.parallelism": {"nodes": 1}, "spec.precision": "fp8"}  # whose rounding was not measured
    assert planned("-f", written(tmp_path, one, base=TRAINING), "--costs", costs)["stepsPredicted"] is None
    service = written(tmp_path, {"spec.engine": {"name": "native"}})
    assert "by measured costs" in plan("-f", service, "--preset", "arctic-tiny", "--costs", costs).stdout
    assert "by measured costs" not in plan("-f", service, "--preset", "arctic-tiny").stdout
