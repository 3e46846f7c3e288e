"""The published figures of Arctic and of what it is compared with, each with its source."""

import pytest

from arctic_model.config import ArcticConfig
from arctic_model.planning.devices import DEVICES
from arctic_model.planning.peers import PEERS, Peer, arctic
from arctic_model.planning.training import HOUR, WEEK, Spending, needed_mfu

ARCTIC = arctic(ArcticConfig())


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llama-3-70b", 70.6, 70.6),  # model card of Meta-Llama-3-70B
        ("code-llama-70b", 69.0, 69.0),  # safetensors' index of CodeLlama-70b-hf
        ("mixtral-8x22b", 140.6, 39.2),  # Mistral AI's "Cheaper, Better, Faster, Stronger": 141B and 39B
        ("dbrx", 131.6, 36.5),  # Databricks' "Introducing DBRX": 132B and 36B
    ],
)
def test_peers_have_the_parameters_that_their_makers_print(name, total, active):
    peer = PEERS[name]
    assert (round(peer.total / 1e9, 1), round(peer.active / 1e9, 1)) == (total, active)


def test_arctic_has_480b_parameters_of_which_a_token_uses_17b():
    # Snowflake, "Snowflake Arctic: the best LLM for enterprise AI", April 2024.
    assert (round(ARCTIC.total / 1e10), round(ARCTIC.active / 1e9)) == (48, 17)


def test_arctic_reads_a_quarter_of_code_llama_70b_and_two_fifths_of_mixtral_8x22b():
    # The same article: "up to 4x less memory reads than Code-Llama 70B, and up to 2.5x less than Mixtral 8x22B".
    assert ARCTIC.reads(PEERS["code-llama-70b"]) == pytest.approx(1 / 4, abs=0.005)
    # By Mixtral's configuration 0.44, and 0.39 by the 44B active parameters of the article's own table: neither is
    # 2/5, which is the latter rounded. Nothing is tuned here to meet it.
    assert round(ARCTIC.reads(PEERS["mixtral-8x22b"]), 2) == 0.44
    assert round(ARCTIC.reads(Peer("Mixtral 8x22B, by the article", 141 * 10**9, 44 * 10**9)), 2) == 0.39


def test_arctic_computes_a_quarter_of_llama_3_70b():
    # The same article: "4x less compute than CodeLlama 70B and Llama 3 70B" at large batch.
    assert ARCTIC.computes(PEERS["llama-3-70b"]) == pytest.approx(1 / 4, abs=0.006)


def test_what_a_training_under_two_million_dollars_takes():
    # The same article: under $2 million, "roughly less than 3K GPU weeks", 3.5T tokens. 6 N D without attention, as
    # such figures are given.
    flops = 6 * ARCTIC.active * 3.5e12
    assert flops == pytest.approx(3.64e23, rel=0.001)
    peak = DEVICES["h100"].bf16_flops
    mfu = needed_mfu(flops, 3000, peak)
    assert round(mfu, 3) == 0.203  # so an MFU of at least 20%
    spent = Spending(flops, devices=1000, rate=mfu * peak)
    assert spent.device_weeks == pytest.approx(3000)
    assert spent.seconds == pytest.approx(3 * WEEK)
    assert 2e6 / spent.device_hours == pytest.approx(3.97, abs=0.005)  # and at most $3.97 an hour
    assert spent.cost(3.96) < 2e6
    assert spent.device_hours == pytest.approx(3000 * WEEK / HOUR)
