"""The same Arctic with its experts shared out over two ranks by different systems, under the same ZeRO-2.

Ours starts exchanges early and fetches them late. DeepSpeed's two, `MoE` and AutoEP, run as one block, where they wait
for their exchanges: they stand where our experts run, between attention and the residual MLP.
"""

from typing import Any

import deepspeed
import torch
from deepspeed.moe import sharded_moe
from deepspeed.moe.layer import MoE as DeepSpeedMoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import Tensor, nn

from arctic_api.training import ArcticTrainingSpec
from arctic_model.config import ArcticConfig
from arctic_model.layers import MLP
from arctic_model.model import ArcticModel
from arctic_workers.training import engine as engines
from arctic_workers.training.engine import LossModule, Ranks
from arctic_workers.training.experts import ParallelExperts

OURS, AUTOEP, DEEPSPEED = "ours", "autoep", "deepspeed"
RANKS = 2
TOKENS, SEQUENCE = 8192, 256
"""Of a rank and step."""
CONFIG = ArcticConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=128,
    moe_layer_frequency=1,
    bos_token_id=None,
    eos_token_id=None,
)
"""104M parameters, 101M of them in experts, which ZeRO has nothing to reduce of: each is held by one rank."""
_PREFERENCE = 8.0
"""What is added to the logits of a token's two experts: enough to outweigh all others, and to leave both a share."""


def start(system: str, ranks: Ranks) -> Any:
    """Return the engine of a system."""
    engine = {OURS: _ours, AUTOEP: _autoep, DEEPSPEED: _deepspeed}[system](ranks)
    engines.set_learning_rate(engine, 1e-4)
    return engine


def specification() -> ArcticTrainingSpec:
    """What a manifest would say."""
    return ArcticTrainingSpec.model_validate(
        {
            "model": {"config": CONFIG.to_dict()},
            "data": {"sources": [{"name": "a", "category": "code", "uri": "file:///a"}]},
            "curriculum": {
                "stages": [{"name": "s", "mixture": {"a": 1}, "learningRate": {"peak": 1.0}, "tokens": RANKS * TOKENS}]
            },
            "batch": {"tokensPerStep": RANKS * TOKENS, "microBatchSize": TOKENS // SEQUENCE},
            "parallelism": {"nodes": RANKS, "expertParallel": RANKS},
            "checkpoint": {"volume": {"claimName": "c"}},
        }
    )


def balanced(layer: int, rank: int) -> Tensor:
    """Return what makes a layer's router choose two random experts a token, each as often as any other: [S, E].

    DeepSpeed's `MoE` pads each expert's rows to those of the most wanted one. Where all are wanted alike, it sends what
    the others send.
    """
    experts = CONFIG.num_local_experts
    tokens_S = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(RANKS * layer + rank))
    numbers_S = torch.arange(TOKENS)
    first_S = numbers_S % experts
    second_S = (first_S + 1 + numbers_S // experts % (experts - 1)) % experts
    preference_SE = torch.zeros(TOKENS, experts)
    preference_SE[tokens_S, first_S] = preference_SE[tokens_S, second_S] = _PREFERENCE
    return preference_SE


def _prefer(gates: list[nn.Module], ranks: Ranks) -> None:
    for layer, gate in enumerate(gates):
        preference_SE = balanced(layer, ranks.rank)
        gate.register_forward_hook(lambda _, __, logits_SE, preference_SE=preference_SE: logits_SE + preference_SE)


def _ours(ranks: Ranks) -> Any:
    engine = engines.start_engine(engines.build_model(CONFIG, ranks, RANKS, 0, None), specification())
    _prefer([layer.router.gate for layer in _modules(engine, ParallelExperts)], ranks)
    return engine


class Block(nn.Module):
    """A layer of experts that does all in one call, as our decoder layer wants it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def dispatch(self, x_BTD: Tensor) -> Tensor:
        """Nothing can be started before all is done."""
        return x_BTD

    def compute(self, x_BTD: Tensor) -> Any:
        """Send, compute, fetch."""
        return self.block(x_BTD)

    def combine(self, computed: Any) -> tuple[Tensor, Tensor]:
        """Return the sums, and the auxiliary loss of those that have one."""
        if isinstance(computed, Tensor):
            return computed, computed.new_zeros(())
        return computed[0], computed[1]


class Dense(nn.Module):
    """All experts of a layer, as AutoEP finds them in a model that it converts."""

    def __init__(self, config: ArcticConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = nn.ModuleList(
            MLP(config.hidden_size, config.intermediate_size) for _ in range(config.num_local_experts)
        )


def _model(block: Any) -> ArcticModel:
    torch.manual_seed(0)
    model = ArcticModel(CONFIG, moe=lambda config, _: Block(block(config)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return model


def _autoep(ranks: Ranks) -> Any:
    module = LossModule(_model(Dense))
    configuration = _configuration() | {
        "expert_parallel": {
            "enabled": True,
            "autoep_size": RANKS,
            "moe_layer_pattern": r".*\.block_sparse_moe\.block",
            "router_pattern": "gate",
            "expert_pattern": "experts",
            "expert_w1": "w1",
            "expert_w2": "w2",
            "expert_w3": "w3",
            "score_func": "softmax",
            "score_apply": "post",
            "route_norm": True,
            "top_k": CONFIG.num_experts_per_tok,
            "has_shared_experts": False,
        }
    }
    engine, *_ = deepspeed.initialize(model=module, config=configuration)
    layers = [layer.block for layer in _modules(engine, Block)]
    assert all(hasattr(layer, "router") for layer in layers), "AutoEP has left a layer as it was"
    _prefer([layer.router.gate for layer in layers], ranks)
    return engine


def _deepspeed(ranks: Ranks) -> Any:
    def block(config: ArcticConfig) -> DeepSpeedMoE:
        return DeepSpeedMoE(
            config.hidden_size,
            MLP(config.hidden_size, config.intermediate_size),
            num_experts=config.num_local_experts,
            ep_size=RANKS,
            k=config.num_experts_per_tok,
            drop_tokens=False,
            top2_2nd_expert_sampling=False,
        )

    module = LossModule(_model(block))
    parameters = split_params_into_different_moe_groups_for_optimizer(
        {"params": list(module.parameters()), "name": "parameters"}
    )
    engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, config=_configuration())
    # Its gate is a matrix and no call: what is added to the logits is added where they are used.
    preferences = [balanced(layer, ranks.rank) for layer in range(CONFIG.num_hidden_layers)]
    choose, calls = sharded_moe.top2gating, iter(range(1 << 62))

    def preferring(logits_SE: Tensor, *arguments: Any, **named: Any) -> Any:
        return choose(logits_SE + preferences[next(calls) % len(preferences)], *arguments, **named)

    sharded_moe.top2gating = preferring
    return engine


def _configuration() -> dict[str, Any]:
    adam = {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True, "fused": True}}
    return engines._configuration(specification(), torch.float32, stage=2) | {"optimizer": adam}


def _modules(engine: Any, kind: type[Any]) -> list[Any]:
    return [module for module in engine.module.modules() if isinstance(module, kind)]
