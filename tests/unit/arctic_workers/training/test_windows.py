import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_workers.training.data.windows import IGNORED, MicroBatch, Stream, Window
from arctic_workers.training.engine import LossModule

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=12)


def stream_of(sizes: list[int]) -> Stream:
    """Documents whose tokens say where they are: 100 x document + place."""
    tokens = np.array([100 * i + j for i, size in enumerate(sizes) for j in range(size)], np.uint16)
    return Stream("s", "code", tokens, np.cumsum([0, *sizes[:-1]]))


@given(sizes=lengths, length=st.integers(1, 40))
def test_windows_together_predict_every_token_but_the_first_of_each_document_once(
    sizes: list[int], length: int
) -> None:
    stream = stream_of(sizes)
    windows = [stream.window(i, length) for i in range(stream.windows(length))]
    predicted = [int(label) for window in windows for label in window.labels if label != IGNORED]
    if len(stream.tokens) > length:
        assert sorted(predicted) == sorted(
            int(token) for token in stream.tokens[1 : 1 + len(windows) * length] if token % 100
        )
    assert [stream.targets(i, length) for i in range(len(windows))] == [
        int((window.labels != IGNORED).sum()) for window in windows
    ]


@given(sizes=lengths, length=st.integers(1, 40), index=st.integers(0, 5))
def test_documents_begin_where_their_first_tokens_are(sizes: list[int], length: int, index: int) -> None:
    window = stream_of(sizes).window(index, length)
    firsts = [i for i, token in enumerate(window.tokens[:-1]) if token % 100 == 0]
    assert window.starts.tolist() == sorted({0, *firsts})
    for i, label in enumerate(window.labels):
        assert label == (IGNORED if window.tokens[i + 1] % 100 == 0 else window.tokens[i + 1])


CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    num_local_experts=4,
    router_aux_loss_coef=0.0,
)


def module_of(config: ArcticConfig = CONFIG) -> LossModule:
    model = ArcticModel(config)
    init_weights(model, 0)
    return LossModule(model)


def batch_of(documents: list[np.ndarray], length: int) -> MicroBatch:
    tokens = np.concatenate(documents)
    stream = Stream("s", "code", tokens, np.cumsum([0, *(len(document) for document in documents[:-1])]))
    return MicroBatch.of([stream.window(0, length)])


@pytest.mark.parametrize("window", [None, 7])
def test_documents_in_one_window_have_the_loss_and_the_gradient_that_each_has_alone(window: int | None) -> None:
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 64, size) for size in (150, 5, 9, 40, 100)]
    together, alone = (module_of(CONFIG.replace(sliding_window=window)) for _ in range(2))
    batch = batch_of(documents, sum(map(len, documents)) - 1)
    begins = np.cumsum([0, *map(len, documents)])
    for document, begin, end in zip(documents, begins, begins[1:], strict=False):
        of_this = batch._replace(labels=np.full_like(batch.labels, IGNORED))
        of_this.labels[:, begin : end - 1] = batch.labels[:, begin : end - 1]
        inside, by_itself = (
            together.loss_and_targets(of_this),
            alone.loss_and_targets(batch_of([document], end - begin - 1)),
        )
        assert inside[1] == by_itself[1] == len(document) - 1
        assert abs(inside - by_itself)[0].item() / len(document) < 1e-5
        inside[0].backward()
        by_itself[0].backward()
    for (name, one), (_, other) in zip(together.named_parameters(), alone.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_window_within_one_document_is_computed_as_before() -> None:
    tokens = torch.randint(0, 64, (2, 33), generator=torch.Generator().manual_seed(0))
    module = module_of()
    windows = [Window(row, row[1:], np.zeros(1, np.int64)) for row in tokens.numpy()]
    packed = MicroBatch.of(windows)
    loss, _ = module(torch.from_numpy(packed.tokens), torch.from_numpy(packed.labels), packed.starts)
    assert loss.item() == module(tokens)[0].item()


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    row = np.arange(9)
    batch = MicroBatch.of([Window(row, np.full(8, IGNORED), np.zeros(1, np.int64))])
    module = module_of()
    loss, balance = module(torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels), batch.starts)
    assert loss.item() == 0.0
    (loss + balance).backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())
