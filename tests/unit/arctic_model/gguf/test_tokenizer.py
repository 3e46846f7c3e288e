import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from arctic_model.gguf import tokenizer as conversion
from arctic_model.gguf.tokenizer import tokenizer_metadata, tokenizer_of, write_tokenizer

TEXT = "In 1984 they'll say: don't!\n\n  def f(x):\n\treturn  x**2  # naïve 日本語 🙂 <s>x</s>"


@pytest.fixture(params=["gpt-2", "smollm", "llama-bpe", "dbrx"])
def folder(request, tmp_path):
    made = Tokenizer(models.BPE(ignore_merges=request.param == "llama-bpe"))
    made.pre_tokenizer, made.decoder = conversion._cut(request.param), decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_tokenizer_goes_to_gguf_and_back(folder, tmp_path):
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    metadata = tokenizer_metadata(folder, before.get_vocab_size())
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    (tmp_path / "back").mkdir()
    write_tokenizer(metadata, tmp_path / "back", "model.gguf")
    after = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert after.encode(TEXT).ids == before.encode(TEXT).ids
    assert after.encode(TEXT).ids[0] == 0
    assert after.decode(after.encode(TEXT).ids, skip_special_tokens=False) == f"<s>{TEXT}"
    settings = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert {key: settings[key] for key in ("bos_token", "eos_token", "chat_template")} == {
        "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}",
    }  # fmt: skip
    assert tokenizer_metadata(tmp_path / "back", before.get_vocab_size()) == metadata


def test_a_model_with_a_larger_vocabulary_gets_tokens_that_nothing_makes(folder):
    metadata = tokenizer_metadata(folder, 310)
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD309]"
    assert metadata["tokenizer.ggml.token_type"][-1] == 5


def test_more_tokens_than_the_model_has_are_refused(folder):
    with pytest.raises(ValueError, match="more tokens than the model's vocabulary of 200"):
        tokenizer_metadata(folder, 200)


def test_whether_a_whole_word_is_taken_without_its_merges_stays_so(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["qqqq"] = 309
    (folder / "tokenizer.json").write_text(json.dumps(content))
    before = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("qqqq").ids
    metadata = tokenizer_metadata(folder, 310)
    assert tokenizer_of(metadata, "model.gguf").encode("qqqq").ids == before
    assert (309 in before) == (metadata["tokenizer.ggml.pre"] == "llama-bpe")


@pytest.mark.parametrize("settings", [None, {"bos_token": None, "eos_token": None}])
@pytest.mark.parametrize("ends", [1, [1, 5]])
def test_special_tokens_that_the_configuration_alone_names_are_kept(folder, settings, ends):
    """Without an end of its own a file's end is llama.cpp's default, the token of number 11."""
    (folder / "tokenizer_config.json").unlink()
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": ends, "pad_token_id": -1}))
    metadata = tokenizer_metadata(folder, 300)
    assert metadata["tokenizer.ggml.bos_token_id"] == 0
    assert metadata["tokenizer.ggml.eos_token_id"] == 1
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert "tokenizer.ggml.padding_token_id" not in metadata


def test_the_default_of_several_chat_templates_is_taken(folder):
    templates = [{"name": "tool_use", "template": "{{ 2 }}"}, {"name": "default", "template": "{{ 1 }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert tokenizer_metadata(folder, 300)["tokenizer.chat_template"] == "{{ 1 }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates[:1]}))
    assert "tokenizer.chat_template" not in tokenizer_metadata(folder, 300)


def test_a_file_that_does_not_say_whether_text_begins_with_bos_is_read_as_llama_cpp_reads_it(folder):
    metadata = tokenizer_metadata(folder, 300)
    del metadata["tokenizer.ggml.add_bos_token"]
    starts = tokenizer_of(metadata, "model.gguf").encode(TEXT).ids[0] == 0
    assert starts == (metadata["tokenizer.ggml.pre"] == "llama-bpe")


def test_a_chat_template_of_its_own_file_comes_first(folder):
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert tokenizer_metadata(folder, 300)["tokenizer.chat_template"] == "{{ 1 }}"


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"tokenizer.ggml.model": "llama"}, "the tokenizer is 'llama', and byte-level BPE"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"},
            "pre is 'qwen2'; gpt-2, smollm, llama-bpe, dbrx are",
        ),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused_by_name(metadata, sentence):
    with pytest.raises(ValueError, match=sentence):
        tokenizer_of(metadata, "model.gguf")


BPE = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [1, 1, 1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("tokens", None, r"tokenizer\.ggml\.tokens is no list of texts"),
        ("tokens", "a", r"tokenizer\.ggml\.tokens is no list of texts"),
        ("tokens", [1, 2], r"tokenizer\.ggml\.tokens is no list of texts"),
        ("merges", None, r"tokenizer\.ggml\.merges is no list of texts"),
        ("merges", 7, r"tokenizer\.ggml\.merges is no list of texts"),
        ("merges", ["ab"], r"tokenizer\.ggml\.merges has 'ab', which is no pair"),
        ("merges", ["a c"], "its merges are not of its tokens"),
        ("token_type", [1, 1], r"tokenizer\.ggml\.token_type is not a number for each of 3 tokens"),
        ("token_type", 1, r"tokenizer\.ggml\.token_type is not a number for each of 3 tokens"),
    ],
)
def test_a_tokenizer_that_is_not_whole_is_refused_by_what_it_lacks(tmp_path, key, value, sentence):
    metadata = {name: content for name, content in (BPE | {f"tokenizer.ggml.{key}": value}).items() if content}
    with pytest.raises(ValueError, match=f"model.gguf: {sentence}"):
        write_tokenizer(metadata, tmp_path, "model.gguf")


def test_more_types_than_tokens_are_passed_over_and_so_are_special_tokens_that_are_none(tmp_path):
    """As in llama.cpp, which warns of such a token."""
    more = {"tokenizer.ggml.token_type": [1, 1, 1, 1], "tokenizer.ggml.add_bos_token": True}
    for number in (3, 2**32 - 1, -1):
        specials = {f"tokenizer.ggml.{name}_token_id": number for name in ("bos", "eos", "padding")}
        write_tokenizer(BPE | more | specials, tmp_path, "model.gguf")
        assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("ab").ids == [2]
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert not {"bos_token", "eos_token", "pad_token"} & settings.keys()


def test_a_tokenizer_that_llama_cpp_can_not_read_is_refused(tmp_path):
    made = Tokenizer(models.WordLevel({"a": 0}))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="is 'WordLevel' with its own rules"):
        tokenizer_metadata(tmp_path, 1)
    cut = Tokenizer(models.BPE({"a": 0}, []))
    cut.pre_tokenizer, cut.decoder = pre_tokenizers.Whitespace(), decoders.ByteLevel()
    cut.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no name known here for its pre_tokenizer"):
        tokenizer_metadata(tmp_path, 1)
    whole = Tokenizer(models.BPE({"a": 0}, [], ignore_merges=True))
    whole.pre_tokenizer, whole.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no name known here for its pre_tokenizer with ignore_merges true"):
        tokenizer_metadata(tmp_path, 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"merges": [["a", "qqqq"]]}, "cannot be read as a tokenizer: .*qqqq"),
        ({"vocab": {"a": "first"}}, "cannot be read as a tokenizer"),
        ({"merges": []}, "has no merges, without which llama.cpp reads no tokenizer"),
        ({"end_of_word_suffix": "</w>"}, "is 'BPE' with its own rules"),
        ({"continuing_subword_prefix": "##"}, "is 'BPE' with its own rules"),
    ],
)
def test_a_file_that_can_not_become_a_tokenizer_of_llama_cpp_is_refused_by_name(folder, change, sentence):
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "model": {**content["model"], **change}}))
    with pytest.raises(ValueError, match=f"tokenizer.json {sentence}"):
        tokenizer_metadata(folder, 300)
