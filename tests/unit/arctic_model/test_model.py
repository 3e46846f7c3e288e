from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from arctic_model.attention import CausalAttend
from arctic_model.model import ArcticModel
from arctic_model.names import hf_names
from arctic_model.weights import held_experts


def by_hf_name(model):
    weights = {}
    for name, parameter in model.named_parameters():
        names = hf_names(name, held_experts(parameter))
        parts = parameter.unbind() if parameter.dim() == 3 else (parameter,)
        weights |= {name.removesuffix(".weight"): part.double() for name, part in zip(names, parts, strict=True)}
    return weights


def by_the_book(config, w, tokens):
    """One sequence in fp64, straight from the published formulas."""

    def norm(x, name):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps) * w[name]

    def mlp(x, name):
        return (functional.silu(x @ w[f"{name}.w1"].T) * (x @ w[f"{name}.w3"].T)) @ w[f"{name}.w2"].T

    def turned(x):
        half = config.head_dim // 2
        angles = torch.arange(len(x))[:, None] * config.rope_theta ** (-torch.arange(half).double() / half)
        pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat((pairs.real, pairs.imag), -1)

    def attention(x, name):
        q, k, v = ((x @ w[f"{name}.{part}_proj"].T).unflatten(-1, (-1, config.head_dim)) for part in ("q", "k", "v"))
        share = config.num_attention_heads // config.num_key_value_heads
        k, v = turned(k).repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = torch.einsum("qnh,knh->nqk", turned(q), k) / math.sqrt(config.head_dim)
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
        return torch.einsum("nqk,knh->qnh", scores.softmax(-1), v).flatten(1) @ w[f"{name}.o_proj"].T

    def experts(x, name):
        p = (x @ w[f"{name}.gate"].T).softmax(-1)
        best = p.topk(config.num_experts_per_tok, -1)
        out = torch.zeros_like(x)
        for t, (values, indices) in enumerate(zip(best.values, best.indices, strict=True)):
            for value, expert in zip(values, indices, strict=True):
                out[t] += value / values.sum() * mlp(x[t], f"{name}.experts.{expert}")
        return out

    x = w["model.embed_tokens"][tokens]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        h = x + attention(norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
        if config.has_experts(layer):
            residual = mlp(norm(h, f"{at}.residual_layernorm"), f"{at}.residual_mlp")
            x = h + residual + experts(norm(x, f"{at}.post_attention_layernorm"), f"{at}.block_sparse_moe")
        else:
            x = h + mlp(norm(h, f"{at}.post_attention_layernorm"), f"{at}.block_sparse_moe.mlp")
    return norm(x, "model.norm") @ w["lm_head"].T


def test_logits_are_those_of_the_published_formulas(config, model, tokens):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.linspace(-0.5, 0.5, len(parameter)))
        expected = torch.stack([by_the_book(config, by_hf_name(model), sequence) for sequence in tokens])
        torch.testing.assert_close(model(tokens).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_loss_is_the_layers_sum_times_its_coefficient(config, model, tokens):
    _, loss = model.forward_with_loss(tokens)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    x, total = model.embed(tokens), torch.zeros(())
    for layer in model.layers.values():
        x, balance = layer(x, model.rotary(positions), CausalAttend())
        assert (balance is not None) == layer.has_experts
        total = total if balance is None else total + balance
    assert loss == config.router_aux_loss_coef * total
    assert loss.requires_grad


def test_slices_give_what_the_whole_gives(config, model, tokens):
    cut = 3
    first, last = ArcticModel(config, range(cut), lm_head=False), ArcticModel(config, range(cut, 4), embed=False)
    weights = model.state_dict()
    for part in (first, last):
        part.load_state_dict({name: weights[name] for name in part.state_dict()})
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    middle, _ = first.run_layers(first.embed(tokens), positions)
    logits = last.logits(last.run_layers(middle, positions)[0])
    assert torch.equal(logits, model(tokens))
    assert set(first.state_dict()) | set(last.state_dict()) == set(weights)


def test_a_slice_refuses_what_it_does_not_hold(config, tokens):
    part = ArcticModel(config, range(1, 2), embed=False, lm_head=False)
    with pytest.raises(RuntimeError, match="no embedding"):
        part.embed(tokens)
    with pytest.raises(RuntimeError, match="no output matrix"):
        part.logits(torch.zeros(1, 1, config.hidden_size))
    with pytest.raises(ValueError, match="not all in a model of 4 layers"):
        ArcticModel(config, range(3, 5))


def test_an_engine_s_attention_with_a_cache_gives_the_same_logits(config, model, tokens):
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def cached(layer, q_BTNH, k_BTGH, v_BTGH):
        if layer in kept:
            k_BTGH, v_BTGH = torch.cat((kept[layer][0], k_BTGH), 1), torch.cat((kept[layer][1], v_BTGH), 1)
        kept[layer] = (k_BTGH, v_BTGH)
        queries = torch.nn.functional.pad(q_BTNH, (0, 0, 0, 0, k_BTGH.shape[1] - q_BTNH.shape[1], 0))
        return CausalAttend()(layer, queries, k_BTGH, v_BTGH)[:, -q_BTNH.shape[1] :]

    with torch.no_grad():
        steps = [model(tokens[:, :6], torch.arange(6).expand(2, 6), cached)]
        steps += [model(tokens[:, t : t + 1], torch.full((2, 1), t), cached) for t in range(6, tokens.shape[1])]
        torch.testing.assert_close(torch.cat(steps, 1), model(tokens), rtol=1e-4, atol=1e-5)


def test_experts_see_the_layer_s_input_before_attention_runs(config, model, tokens):
    calls = []
    layer = model.layers[1]
    moe = layer.block_sparse_moe
    for step in ("dispatch", "compute", "combine"):
        inner = getattr(moe, step)
        setattr(moe, step, lambda x, step=step, inner=inner: (calls.append(step), inner(x))[1])
    layer.self_attn.register_forward_pre_hook(lambda *_: calls.append("attention"))
    layer.residual_mlp.register_forward_pre_hook(lambda *_: calls.append("residual"))
    model(tokens)
    assert calls == ["dispatch", "attention", "compute", "residual", "combine"]


def test_a_factory_makes_the_experts_of_each_layer(config):
    made = []

    class Own(torch.nn.Module):
        def dispatch(self, x):
            return x

        compute = dispatch

        def combine(self, x):
            return torch.zeros_like(x), torch.zeros(())

    def factory(config, layer):
        made.append(layer)
        return Own()

    model = ArcticModel(config, moe=factory)
    assert made == [1, 3]
    assert isinstance(model.layers[3].block_sparse_moe, Own)


def test_training_lowers_the_loss(config, model):
    data = torch.arange(40).remainder(10).expand(2, 40)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        logits, auxiliary = model.forward_with_loss(data[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + auxiliary).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 1 < losses[0]
