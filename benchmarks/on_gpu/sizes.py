"""Which of a large model's layers and experts fit on a card, what a step of them reads, and what whole nodes would do.

Pure arithmetic: nothing here asks a device.
"""

from dataclasses import dataclass, replace

from arctic_model.config import ArcticConfig
from arctic_model.planning.decoding import decode
from arctic_model.planning.devices import DEVICES, Device, device_named
from arctic_model.planning.serving import RankMemory, Serving, plan_serving

ENDS = ("embedding", "lm_head")
"""Parts of the weights that no layer has."""
LEFT = 0.12
"""Share of what is free that layers leave to activations, to graphs, and to what is measured beside them."""


@dataclass(frozen=True)
class Fit:
    """As much of a model as a card holds."""

    config: ArcticConfig
    """With these layers and experts."""
    bytes: int
    """Of weights, keys and values."""


def layer_of(config: ArcticConfig) -> RankMemory:
    """Return what one layer takes in FP8, with keys and values in bf16; the first layer that has experts."""
    one = config.replace(num_hidden_layers=1, moe_layer_frequency=1)
    plan = plan_serving(Serving(one, weights="fp8", kv_cache="bf16", compute="fp32"), DEVICES["h200"])
    return plan.ranks[0]


def layer_bytes(config: ArcticConfig) -> int:
    """Return the bytes of a layer's weights: e4m3 with its scales, router and norms in fp32."""
    return sum(size for part, size in layer_of(config).resident.items() if part not in ENDS)


def cache_bytes(config: ArcticConfig, sequences: int, length: int) -> int:
    """Return the bytes of a layer's keys and values of sequences that are so long."""
    return sequences * length * layer_of(config).kv_bytes_per_token


def fitting(config: ArcticConfig, free: int, sequences: int, length: int) -> Fit:
    """Return the most layers with all experts that fit into so many bytes, or one layer with as many as do.

    Raises ValueError with a sentence where not even a token's experts do.
    """
    room = round(free * (1 - LEFT))
    kept = cache_bytes(config, sequences, length)
    whole = layer_bytes(config)
    layers = min(room // (whole + kept), config.num_hidden_layers)
    if layers:
        return Fit(config.replace(num_hidden_layers=layers, moe_layer_frequency=1), layers * (whole + kept))
    least = config.num_experts_per_tok
    for experts in range(config.num_local_experts, least - 1, -1):
        part = config.replace(num_hidden_layers=1, moe_layer_frequency=1, num_local_experts=experts)
        if layer_bytes(part) + kept <= room:
            return Fit(part, layer_bytes(part) + kept)
    raise ValueError(f"{free / 2**30:.1f} GiB are free: not one layer with {least} experts fits, which is the least")


def touched_bytes(config: ArcticConfig, touched: float, sequences: int, length: int) -> float:
    """Return the bytes that a layer reads in a step of decoding: its weights, of the experts those touched, its cache.

    `length` tokens of each sequence are in the cache.
    """
    experts = layer_of(config).resident["experts"]
    untouched = experts * (1 - touched / config.num_local_experts)
    return layer_bytes(config) - untouched + cache_bytes(config, sequences, length)


def layer_flops(config: ArcticConfig) -> int:
    """Return the FLOPs that a token asks of a layer's matrices, two a multiply-add; attention's pairs apart."""
    return 2 * layer_of(config).multiplications


def projected(
    config: ArcticConfig, card: str, bandwidth: float, flops: float, *, nodes: int, per_node: int, length: int
) -> float:
    """Return the tokens a second of one sequence on nodes of such cards, each a pipeline rank of tensor ranks.

    By the roofline of `arctic_model.planning.decoding`, at the rates that a card is said to reach: bytes a second of
    memory and FLOPs a second in FP8. What tensor ranks add up takes the time of its bytes over the vendor's fabric,
    where the card is known, else none; how long a message takes to start is left out, as nobody has measured it.
    """
    known = device_named(card) or replace(DEVICES["h200"], title=card, fabric=None, network=None)
    device: Device = replace(known, bandwidth=bandwidth, bf16_flops=flops, fp8_flops=flops, per_node=per_node)
    plan = plan_serving(Serving(config, tensor=per_node, pipeline=nodes), device)
    step = decode(plan, 1, length)
    assert step is not None, "both rates are given"
    return step.tokens_per_second
