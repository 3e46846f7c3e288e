import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_api.training import Source
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_workers.training import tally as tallies
from arctic_workers.training.data import tokenizer
from arctic_workers.training.data.batches import held_out_windows
from arctic_workers.training.data.conversations import Conversation, ConversationEncoder
from arctic_workers.training.data.messages import RowFault, messages_of
from arctic_workers.training.data.sources import Tally, read_contents, read_documents
from arctic_workers.training.data.streams import Prepared, open_streams, write_streams
from arctic_workers.training.data.windows import IGNORED, Conversations, MicroBatch
from arctic_workers.training.engine import LossModule, Ranks
from arctic_workers.training.held_out import HeldOut

ONE_RANK = Ranks(0, 1, 0, torch.device("cpu"))
CHATS = [
    [
        {"role": "user", "content": f"how many foxes jump over {i} dogs?"},
        {"role": "assistant", "content": f"{i * i} foxes"},
        {"role": "user", "content": "and then?"},
        {"role": "assistant", "content": "they sleep"},
    ]
    for i in range(40)
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ConversationEncoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [message["content"] for chat in CHATS for message in chat]
    tokenizer.save(tokenizer.train(texts, 300), folder)
    return ConversationEncoder(folder)


@pytest.fixture(scope="module")
def stream(encoder: ConversationEncoder, tmp_path_factory: pytest.TempPathFactory) -> Conversations:
    folder = tmp_path_factory.mktemp("streams")
    write_streams(folder, encoder, map(encoder.conversation, CHATS), 0.0)
    found = open_streams([Prepared("s", "instruction", folder)], "train")["s"]
    assert isinstance(found, Conversations)
    return found


def decoded(encoder: ConversationEncoder, ids: Any) -> str:
    return encoder.tokenizer.decode([int(i) for i in ids if i != IGNORED], skip_special_tokens=False)


@pytest.mark.parametrize("length", [64, 100, 400])
def test_every_answer_and_nothing_else_is_learnt_once(
    encoder: ConversationEncoder, stream: Conversations, length: int
) -> None:
    windows = [stream.window(i, length) for i in range(stream.windows(length))]
    learnt = "".join(decoded(encoder, window.labels) for window in windows)
    assert learnt == "".join(f" {i * i} foxes\n they sleep\n</s>" for i in range(40))
    for i, window in enumerate(windows):
        assert stream.targets(i, length) == int((window.labels != IGNORED).sum())
        at = np.flatnonzero(window.labels != IGNORED)
        assert (window.labels[at] == window.tokens[at + 1]).all()
        assert [decoded(encoder, window.tokens[s : s + 2])[:4] for s in window.starts[:-1]] == ["<s>u"] * (
            len(window.starts) - 1
        )


def test_a_conversation_that_is_longer_than_a_sequence_is_cut_off(stream: Conversations) -> None:
    assert stream.windows(16) == 40
    assert all(stream.window(i, 16).starts.tolist() == [0] for i in range(40))


def held_out_of(answers: list[list[int]]) -> Conversations:
    """Three conversations of 30 tokens."""
    return Conversations(
        "s", "instruction", np.arange(90, dtype=np.uint16), np.array([0, 30, 60]), answers=np.array(answers)
    )


def test_held_out_conversations_are_judged_by_windows_with_an_answer() -> None:
    stream = held_out_of([[20, 30], [35, 40], [80, 90]])
    [window] = held_out_windows({"s": stream}, "instruction", 16, 2)
    assert int(window.tokens[0]) == 30
    assert HeldOut(None, ONE_RANK, {"s": stream}, 16, 64, 1).categories == ["instruction"]


def test_conversations_whose_answers_are_all_cut_off_are_no_held_out_text() -> None:
    streams = {"s": held_out_of([[20, 30], [50, 60], [80, 90]])}
    assert held_out_windows(streams, "instruction", 16, 2) == []
    assert HeldOut(None, ONE_RANK, streams, 16, 64, 1).categories == []
    assert HeldOut(None, ONE_RANK, streams, 32, 64, 1).categories == ["instruction"]


@given(sizes=st.lists(st.integers(2, 30), min_size=1, max_size=20), length=st.integers(8, 40))
def test_whole_conversations_are_packed_and_counted(sizes: list[int], length: int) -> None:
    documents = np.cumsum([0, *sizes[:-1]])
    answers = np.stack([documents + 1, documents + np.array(sizes)], 1)  # all but the first token
    tokens = np.concatenate([np.arange(100 * i, 100 * i + size) for i, size in enumerate(sizes)]).astype(np.uint16)
    stream = Conversations("s", "code", tokens, documents, answers=answers, pad=9999)
    learnt = []
    for i in range(stream.windows(length)):
        window = stream.window(i, length)
        assert window.tokens.shape == (length + 1,)
        assert stream.targets(i, length) == int((window.labels != IGNORED).sum())
        learnt += [int(label) for label in window.labels if label != IGNORED]
        starts = [j for j in range(length) if window.tokens[j] % 100 == 0]
        padding = np.flatnonzero(window.tokens[:-1] == 9999)
        assert window.starts.tolist() == [*starts, *padding[:1].tolist()]
    assert learnt == [100 * i + j for i, size in enumerate(sizes) for j in range(1, min(size, length + 1))]


def small_module(layers: int) -> LossModule:
    config = ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=layers
    )
    model = ArcticModel(config)
    init_weights(model, 1)
    return LossModule(model)


def test_the_loss_on_prompts_is_exactly_absent(stream: Conversations) -> None:
    """What a run learns from is the answers alone: prompts and padding add neither a loss nor a gradient."""
    module = small_module(layers=1)
    model = module.arctic
    outputs: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    assert model.model.norm is not None
    model.model.norm.register_forward_hook(keep)
    batch = MicroBatch.of([stream.window(i, 100) for i in range(2)])
    labels = torch.from_numpy(batch.labels)
    loss, _ = module(torch.from_numpy(batch.tokens), labels, batch.starts)
    loss.backward()
    [output] = outputs
    assert output.grad is not None
    assert torch.equal(output.grad.abs().sum(-1) > 0, labels != IGNORED)
    with torch.no_grad():
        logits = output @ model.lm_head.weight.T
    expected = torch.nn.functional.cross_entropy(logits[labels != IGNORED], labels[labels != IGNORED])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert module.rows_B2 is not None
    assert module.rows_B2[:, 1].sum() == batch.targets == int((labels != IGNORED).sum())


def test_routers_are_not_judged_by_padding(stream: Conversations) -> None:
    """Its tokens are alike and so have the same experts, which they would all have balance each other."""
    module = small_module(layers=2)
    tally = tallies.Tally(module, [], torch.device("cpu"))
    found = []
    for length in (100, 200):
        batch = MicroBatch.of([stream.window(0, 100)])
        [size] = batch.sizes or []
        assert size < 100
        if length > 100:
            further = np.full((1, length - 100), 9)
            labels = np.concatenate([batch.labels, np.full_like(further, IGNORED)], 1)
            batch = batch._replace(tokens=np.concatenate([batch.tokens, further], 1), labels=labels)
        with tally.counting():
            _, balance = module(
                torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels), batch.starts, batch.sizes
            )
        found.append((balance.item(), tally.look(1, lambda sums: sums.tolist()).routers))
    (one, health), (other, of_more) = found
    assert one == pytest.approx(other, rel=1e-5)
    for first, second in zip(health, of_more, strict=True):
        assert first.load == pytest.approx(second.load)
        assert first.entropy == pytest.approx(second.entropy)


def test_signs_of_the_template_are_special_and_the_first_token_is_never_learnt(encoder: ConversationEncoder) -> None:
    [encoded] = encoder.encode_documents([Conversation("<s>user: hi", [(0, 11)])])
    assert encoded.ids[0] == encoder.bos
    assert encoded.answers[0][0] == 1
    assert encoded.ids[-1] == encoder.eos


def test_a_token_that_is_partly_of_a_prompt_is_no_answers(encoder: ConversationEncoder) -> None:
    [encoded] = encoder.encode_documents([Conversation("how many foxes sleep", [(11, 20)])])  # from `xes` on
    begin, end = encoded.answers[0]
    assert encoder.tokenizer.decode(encoded.ids[begin : end - 1]) == " sleep"


PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "content",
    [
        PAIR,
        [{**message, "tool_calls": None} for message in PAIR],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        {"role": ["user", "assistant"], "content": ["a", "b"]},
    ],
)
def test_conversations_are_read_in_the_forms_that_are_published(content: Any) -> None:
    assert messages_of(content) == PAIR


@pytest.mark.parametrize("nothing", [{}, {"content": None}])
def test_an_answer_may_be_calls_alone(nothing: dict[str, Any]) -> None:
    """As OpenAI's API writes them, and many publish them; templates put `content` together with other text."""
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "tool_calls": [call], **nothing}
    assert messages_of([PAIR[0], called]) == [PAIR[0], {"role": "assistant", "content": "", "tool_calls": [call]}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has no messages"),
        ([], "has no messages"),
        ("hi", "has no messages"),
        ([1], "message 1 that is no object"),
        ([PAIR[0], {"role": "assistant", "content": None, "tool_calls": []}], "message 2 without role and content"),
        ([{"role": "user", "tool_calls": [{}]}, PAIR[1]], "message 1 without role and content"),
        ([PAIR[0], {"role": "assistant", "text": "b"}], r"message 2 without role and content .*fields: role, text"),
        (PAIR[:1], "no answer to learn"),
    ],
)
def test_what_is_no_conversation_is_said(content: Any, says: str) -> None:
    with pytest.raises(RowFault, match=says):
        messages_of(content)


def test_half_of_a_surrogate_pair_anywhere_in_a_message_is_replaced(
    encoder: ConversationEncoder, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((encoder.folder / name).read_bytes())
    template = "{% for it in messages %}{{ it.role }}{{ it.tool_calls }}: {{ it.content }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}assistant: {% endif %}")
    chat = [{**PAIR[0], "tool_calls": "f(\ud83d)"}, PAIR[1]]
    conversation = ConversationEncoder(tmp_path).conversation(messages_of(chat))
    assert str(conversation) == "userf(\ufffd): aassistant: b"
    assert [str(conversation)[begin:end] for begin, end in conversation.answers] == ["b"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_that_are_no_conversations_are_left_out_and_counted(
    tmp_path: Path, encoder: ConversationEncoder, form: str
) -> None:
    rows = [{"chat": PAIR}, {"chat": None}, {"chat": PAIR[:1]}, {"chat": PAIR}]
    if form == "jsonl":
        (tmp_path / "d").write_text("\n".join(map(json.dumps, rows)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d")
    source = Source.model_validate(
        {"name": "s", "category": "instruction", "uri": f"file://{tmp_path}/d", "format": form}
        | {"content": "messages", "field": "chat", "maxSkipped": "50%"}
    )
    tally = Tally()
    read = list(read_contents(source, lambda path: path, tally, encoder.conversation))
    assert [str(conversation) for conversation in read] == ["<s>user: a\nassistant: b\n"] * 2
    assert (tally.rows, tally.skipped) == (4, 2)
    assert "has no messages" in tally.first_skipped
    assert list(read_documents(source, lambda path: path)) == ["a\nb"] * 2  # what a tokenizer is trained on
