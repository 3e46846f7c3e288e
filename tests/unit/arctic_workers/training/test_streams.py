import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from arctic_workers.training.data import tokenizer
from arctic_workers.training.data.streams import (
    DATA_FOLDER,
    Prepared,
    folder_name,
    folders_of,
    is_held_out,
    is_whole,
    open_streams,
    write_streams,
)
from arctic_workers.training.data.windows import Stream
from arctic_workers.training.errors import Refused

TEXTS = [f"document {i}: the quick brown fox jumps over {i * 37} lazy dogs\n" for i in range(700)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tokenizer.TextEncoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(tokenizer.train(TEXTS, 320), folder)
    return tokenizer.TextEncoder(folder)


@pytest.fixture
def written(tmp_path: Path, encoder: tokenizer.TextEncoder) -> Path:
    write_streams(tmp_path, encoder, TEXTS, 0.1)
    return tmp_path


def opened(folder: Path, part: str) -> dict[str, Stream]:
    return open_streams([Prepared("s", "code", folder)], part)


def decoded(encoder: tokenizer.TextEncoder, stream: Stream) -> list[str]:
    text = encoder.tokenizer.decode(stream.tokens.tolist(), skip_special_tokens=False)
    return [part.removeprefix(tokenizer.BOS) for part in text.split(tokenizer.EOS) if part]


def test_the_folders_of_a_source_are_not_those_of_another_whose_name_goes_on(tmp_path: Path) -> None:
    names = ("web", "web-2024", "web-0123456789abcdef", "validation.web")
    for name in names:
        for made_from in ("the text as it was", "as it is"):
            (tmp_path / DATA_FOLDER / folder_name(name, [made_from])).mkdir(parents=True)
    for name in names:
        expected = {folder_name(name, [made_from]) for made_from in ("the text as it was", "as it is")}
        assert {folder.name for folder in folders_of(name, tmp_path)} == expected


def test_a_run_that_has_prepared_nothing_has_no_folder_of_a_source(tmp_path: Path) -> None:
    assert folders_of("web", tmp_path) == []


def test_the_tokenizer_gives_any_text_back_and_marks_its_beginning(encoder: tokenizer.TextEncoder) -> None:
    for text in ("hello fox", "Zeile\n\tüß 漢字 🦊", "<s> not special twice"):
        ids = encoder.tokenizer.encode(text).ids
        assert ids[0] == encoder.bos
        assert encoder.tokenizer.decode(ids[1:], skip_special_tokens=False) == text
    assert encoder.vocab_size == 320


def test_every_document_is_in_one_stream_whole_and_in_order(written: Path, encoder: tokenizer.TextEncoder) -> None:
    train = decoded(encoder, opened(written, "train")["s"])
    held_out = decoded(encoder, opened(written, "held-out")["s"])
    assert train == [text for text in TEXTS if not is_held_out(text, 0.1)]
    assert held_out == [text for text in TEXTS if is_held_out(text, 0.1)]
    assert 30 < len(held_out) < 140


def test_a_copy_of_a_held_out_document_is_held_out_too(tmp_path: Path, encoder: tokenizer.TextEncoder) -> None:
    held_out = next(text for text in TEXTS if is_held_out(text, 0.1))
    write_streams(tmp_path, encoder, [*TEXTS, held_out, held_out], 0.1)
    [(ids, *_)] = encoder.encode_documents([held_out])
    train = np.fromfile(tmp_path / "train.bin", "<u2").tolist()
    assert not any(train[i : i + len(ids)] == ids for i in range(len(train)))


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (3, 1)])
def test_small_sources_keep_text_on_both_sides(
    tmp_path: Path, encoder: tokenizer.TextEncoder, count: int, held_out: int
) -> None:
    write_streams(tmp_path, encoder, TEXTS[:count], 1e-6)
    streams_of = {part: opened(tmp_path, part) for part in ("train", "held-out")}
    assert len(decoded(encoder, streams_of["train"]["s"])) == count - held_out
    assert bool(streams_of["held-out"]) == bool(held_out)


@pytest.mark.parametrize("fraction", [1e-6, 0.9999])  # by which none of the first two would be held out, or both
def test_copies_of_what_a_small_source_holds_out_are_held_out_too(
    tmp_path: Path, encoder: tokenizer.TextEncoder, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    monkeypatch.setattr(tokenizer, "BATCH", 3)
    documents = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[1]]
    write_streams(tmp_path, encoder, documents, fraction)
    train, held_out = (decoded(encoder, opened(tmp_path, part)["s"]) for part in ("train", "held-out"))
    assert sorted(map(len, map(set, (train, held_out)))) == [1, 1]
    assert sorted(train + held_out) == sorted(documents)


def test_of_one_text_alone_no_copy_is_held_out(tmp_path: Path, encoder: tokenizer.TextEncoder) -> None:
    write_streams(tmp_path, encoder, [TEXTS[0]] * 3, 0.1)
    assert decoded(encoder, opened(tmp_path, "train")["s"]) == [TEXTS[0]] * 3
    assert opened(tmp_path, "held-out") == {}


def test_an_empty_document_is_not_what_is_held_out(tmp_path: Path, encoder: tokenizer.TextEncoder) -> None:
    later = [text for text in TEXTS if not is_held_out(text, 0.9)][:2]  # which an empty one would come before
    write_streams(tmp_path, encoder, ["", *later, ""], 1e-6)
    assert len(decoded(encoder, opened(tmp_path, "held-out")["s"])) == 1


@pytest.mark.parametrize(("fraction", "part", "other"), [(0.0, "train", "held-out"), (1.0, "held-out", "train")])
def test_a_source_may_be_all_for_training_or_all_for_validation(
    tmp_path: Path, encoder: tokenizer.TextEncoder, fraction: float, part: str, other: str
) -> None:
    write_streams(tmp_path, encoder, TEXTS, fraction)
    assert decoded(encoder, opened(tmp_path, part)["s"]) == TEXTS
    assert opened(tmp_path, other) == {}


def test_text_that_looks_like_special_tokens_is_text(encoder: tokenizer.TextEncoder) -> None:
    text = "price: <s>10</s> <pad>5"
    [(ids, *_)] = encoder.encode_documents([text])
    assert [ids.count(token) for token in (encoder.bos, encoder.eos, encoder.pad)] == [1, 1, 0]
    assert encoder.tokenizer.decode(ids[1:-1], skip_special_tokens=False) == text


@pytest.mark.parametrize("end_of_line", ["\n", ""])
def test_a_long_document_is_encoded_in_pieces_and_stays_one_document(
    tmp_path: Path, encoder: tokenizer.TextEncoder, monkeypatch: pytest.MonkeyPatch, end_of_line: str
) -> None:
    text = "".join(f"line {i} of a long file 漢{end_of_line}" for i in range(200))
    [(whole, *_)] = encoder.encode_documents([text])
    monkeypatch.setattr(tokenizer, "PIECE", 100)
    assert len(list(encoder.encode_documents([text]))) > 30
    write_streams(tmp_path, encoder, [text, "short"], 0.0)
    stream = opened(tmp_path, "train")["s"]
    assert decoded(encoder, stream) == [text, "short"]
    assert stream.tokens.tolist().count(encoder.eos) == stream.tokens.tolist().count(encoder.bos) == 2
    if end_of_line:  # cut there, the tokens are those of the whole
        assert stream.tokens[: len(whole)].tolist() == whole


@pytest.mark.parametrize("document", ["", "x", "y" * 100, "z" * 101, "a\n" * 50, "a\n" * 51])
def test_documents_of_any_length_have_one_beginning_and_one_end(
    encoder: tokenizer.TextEncoder, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    monkeypatch.setattr(tokenizer, "PIECE", 100)
    ids = [token for part in encoder.encode_documents([document]) for token in part.ids]
    assert (ids[0], ids.count(encoder.bos), ids[-1], ids.count(encoder.eos)) == (encoder.bos, 1, encoder.eos, 1)
    assert encoder.tokenizer.decode(ids) == document


def test_batches_are_bounded_in_number_and_in_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "BATCH", 3)
    monkeypatch.setattr(tokenizer, "BATCH_CHARACTERS", 10)
    long, short = "x" * 20, "y"
    assert list(tokenizer.batches([long, short, long, short, short, short, short], len, least=2)) == [
        [long, short],
        [long],
        [short, short, short],
        [short],
    ]


def test_large_documents_are_held_out_too(tmp_path: Path, encoder: tokenizer.TextEncoder) -> None:
    documents = ["".join(TEXTS[i::3]) * 50 for i in range(3)]
    write_streams(tmp_path, encoder, documents, 1e-6)
    assert len(decoded(encoder, opened(tmp_path, "held-out")["s"])) == 1
    assert len(decoded(encoder, opened(tmp_path, "train")["s"])) == 2


def test_damage_is_noticed(written: Path) -> None:
    assert is_whole(written)
    file = written / "train.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert not is_whole(written)
    assert not is_whole(written / "nothing")


def test_windows_overlap_by_one_token_and_go_round() -> None:
    stream = Stream("s", "code", np.arange(10, dtype=np.uint16))
    assert stream.windows(4) == 2
    assert stream.window(0, 4).tokens.tolist() == [0, 1, 2, 3, 4]
    assert stream.window(1, 4).tokens.tolist() == [4, 5, 6, 7, 8]
    assert stream.windows(16) == 1
    assert stream.window(0, 16).tokens.tolist() == [*range(10), *range(7)]
    assert stream.window(0, 16).starts.tolist() == [0, 10]  # going round is a document's beginning too


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    with pytest.raises(Refused, match=r"no tokenizer\.json"):
        tokenizer.copy(tmp_path, tmp_path / "to")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Refused, match="cannot be read as a tokenizer"):
        tokenizer.TextEncoder(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("[]", "is not a JSON object"),
        ('"x"', "is not a JSON object"),
        ('{"eos_token": 3}', "eos_token in .* is 3, not a text"),
        ('{"eos_token": "</s>", "bos_token": ["x"]}', r"bos_token in .* is \['x'\], not a text"),
        ('{"eos_token": "no such"}', "names no known eos_token"),
    ],
)
def test_a_tokenizer_with_a_configuration_of_another_shape_is_refused(
    tmp_path: Path, encoder: tokenizer.TextEncoder, config: str, says: str
) -> None:
    tokenizer.copy(encoder.folder, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(Refused, match=says):
        tokenizer.TextEncoder(tmp_path)


def test_a_tokenizer_that_was_saved_to_cut_and_pad_batches_takes_documents_as_they_are(
    tmp_path: Path, encoder: tokenizer.TextEncoder
) -> None:
    tokenizer.copy(encoder.folder, tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.enable_truncation(8)
    saved.enable_padding()
    saved.save(str(tmp_path / "tokenizer.json"))
    short, long = TEXTS[0], "".join(TEXTS[:20])
    assert list(tokenizer.TextEncoder(tmp_path).encode_documents([short, long])) == list(
        encoder.encode_documents([short, long])
    )


def test_ids_with_gaps_fit_the_vocabulary(tmp_path: Path, encoder: tokenizer.TextEncoder) -> None:
    tokenizer.copy(encoder.folder, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer.TextEncoder(tmp_path).vocab_size == 70_001


def test_the_sample_takes_from_each_source_its_share_and_no_document_is_most_of_it() -> None:
    documents = {"a": ["x" * 10_000], "b": ["y" * 50] * 1000}
    sample = list(tokenizer.sample_texts({"a": 3.0, "b": 1.0}, lambda name: documents[name], 4000))
    assert sum(len(text) for text in sample if text[0] == "y") == 1000
    assert [len(text) for text in sample if text[0] == "x"] == [3000 // tokenizer.MAX_SAMPLE_PART]


def test_large_vocabularies_take_wider_tokens(tmp_path: Path, encoder: tokenizer.TextEncoder) -> None:
    class Wide(tokenizer.TextEncoder):
        vocab_size = 70_000

    write_streams(tmp_path, Wide(encoder.folder), TEXTS[:3], 0.0)
    assert opened(tmp_path, "train")["s"].tokens.dtype == np.uint32
