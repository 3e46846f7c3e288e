"""Reading a folder's tokenizer."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from arctic_workers.chat.template import TextError
from arctic_workers.chat.tokenizer import TOKENIZER_FILE, read_tokenizer


def test_a_text_is_whole_though_the_file_was_saved_as_it_cut_and_padded_batches(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    made.enable_padding(length=8)
    made.save(str(tmp_path / TOKENIZER_FILE))
    assert read_tokenizer(tmp_path).encode("a b a").ids == [0, 1, 0]


def test_what_is_not_there_or_no_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"tokenizer\.json is not there: put the model's"):
        read_tokenizer(tmp_path)
    (tmp_path / TOKENIZER_FILE).write_text("{}")
    with pytest.raises(TextError, match="cannot be read as a tokenizer"):
        read_tokenizer(tmp_path)
