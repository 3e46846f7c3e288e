"""Tokenizers between GGUF's metadata and the files of Hugging Face: byte-level BPE, as all but old Llamas have it.

llama.cpp knows by name how text is cut before pairs are merged (`tokenizer.ggml.pre`); what each name means is in
`llm_tokenizer_bpe` of its `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from arctic_model.config import CONFIG_FILE, read_json

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
            "pad_token": "padding_token_id"}  # fmt: skip


def _cut(name: str) -> Any:
    """What cuts text, by llama.cpp's name; None for a name that is not known here."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt-2":
        return plain
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if name in ("llama-bpe", "dbrx"):
        split = pre_tokenizers.Split(Regex(_LLAMA_3), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return None


_NAMES = ("gpt-2", "smollm", "llama-bpe", "dbrx")
_LLAMA_3_RULES = "llama-bpe"
"""The name with which llama.cpp takes a whole word that is a token without its merges, and begins a text with BOS."""


def tokenizer_of(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """Return the tokenizer that a file's metadata describes. Raises ValueError where it is of another kind."""
    kind, cut = metadata.get(f"{_PREFIX}model"), str(metadata.get(f"{_PREFIX}pre"))
    if kind != "gpt2":
        raise ValueError(
            f"{source}: the tokenizer is {kind!r}, and byte-level BPE ('gpt2') alone is read from GGUF: import the "
            "Hugging Face folder of the model"
        )
    pre_tokenizer = _cut(cut)
    if pre_tokenizer is None:
        raise ValueError(
            f"{source}: tokenizer.ggml.pre is {cut!r}; {', '.join(_NAMES)} are known here: import the Hugging Face "
            "folder of the model"
        )
    tokens = _texts(metadata, "tokens", source)
    merges = [_pair(merge, source) for merge in _texts(metadata, "merges", source)]
    types = _types(metadata, len(tokens), source)
    numbers = {token: number for number, token in enumerate(tokens)}
    try:
        made = Tokenizer(models.BPE(numbers, merges, ignore_merges=cut == _LLAMA_3_RULES))
    except Exception as error:  # the library has no type of its own for it
        raise ValueError(f"{source}: its merges are not of its tokens ({error}): convert the model again") from None
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    made.add_tokens(
        [
            AddedToken(token, special=of_type == _CONTROL, normalized=False)
            for token, of_type in zip(tokens, types, strict=False)
            if of_type in (_CONTROL, _USER_DEFINED)
        ]
    )
    number = _special_token(metadata, "bos_token_id", tokens)
    # Files of the first Llamas 3 leave it to the name of the cut.
    if number is not None and metadata.get(f"{_PREFIX}add_bos_token", cut == _LLAMA_3_RULES):
        bos = tokens[number]
        made.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, number)]
        )
    return made


def _texts(metadata: Mapping[str, Any], key: str, source: str) -> list[str]:
    texts = metadata.get(_PREFIX + key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{source}: {_PREFIX}{key} is no list of texts: convert the model again, with its tokenizer")
    return texts


def _pair(merge: str, source: str) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not second:
        raise ValueError(f"{source}: {_PREFIX}merges has {merge!r}, which is no pair: convert the model again")
    return first, second


def _types(metadata: Mapping[str, Any], count: int, source: str) -> list[int]:
    """The type of each token; llama.cpp passes over what is more."""
    types = metadata.get(f"{_PREFIX}token_type", [_NORMAL] * count)
    if not isinstance(types, list) or len(types) < count:
        raise ValueError(
            f"{source}: {_PREFIX}token_type is not a number for each of {count} tokens: convert the model again"
        )
    return types


def _special_token(metadata: Mapping[str, Any], key: str, tokens: Sequence[str]) -> int | None:
    """The number of a special token; None where none is said, or, as in llama.cpp, where there is no such token."""
    number = metadata.get(_PREFIX + key)
    return number if isinstance(number, int) and 0 <= number < len(tokens) else None


def settings_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`: special tokens and the chat template."""
    tokens = metadata[f"{_PREFIX}tokens"]
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in _SPECIAL.items():
        if (number := _special_token(metadata, key, tokens)) is not None:
            settings[name] = tokens[number]
    if template := metadata.get(_TEMPLATE):
        settings["chat_template"] = template
    return settings


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, source: str) -> None:
    """Write what `tokenizer_of` and `settings_of` return into a folder that exists."""
    tokenizer_of(metadata, source).save(str(folder / TOKENIZER_FILE))
    text = json.dumps(settings_of(metadata), indent=2, ensure_ascii=False) + "\n"
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


def tokenizer_metadata(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Return GGUF's metadata of a folder's tokenizer, filled up with unused tokens to `vocab_size`; pure of GGUF.

    Raises ValueError where llama.cpp could not read the tokenizer, and where it has more tokens than the model.
    """
    path = folder / TOKENIZER_FILE
    content = read_json(path)
    cut = _name_of_cut(content, path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no type of its own for it
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from None
    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(vocabulary, default=-1) >= vocab_size:
        raise ValueError(f"{path} has more tokens than the model's vocabulary of {vocab_size}")
    added = {entry["id"]: entry for entry in content.get("added_tokens") or []}

    def type_of(number: int) -> int:
        if number not in vocabulary:
            return _UNUSED
        return _NORMAL if number not in added else _CONTROL if added[number]["special"] else _USER_DEFINED

    settings = read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() else {}
    merges = content["model"]["merges"]
    if not merges:
        raise ValueError(f"{path} has no merges, without which llama.cpp reads no tokenizer: leave the tokenizer out")
    made: dict[str, Any] = {
        f"{_PREFIX}model": "gpt2",
        f"{_PREFIX}pre": cut,
        f"{_PREFIX}tokens": [vocabulary.get(number, f"[PAD{number}]") for number in range(vocab_size)],
        f"{_PREFIX}token_type": [type_of(number) for number in range(vocab_size)],
        f"{_PREFIX}merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
    for name, key in _SPECIAL.items():
        number = _named_token(settings.get(name), tokenizer)
        if number is None:  # what no file names is llama.cpp's default, an ordinary token here
            number = _first(config.get(f"{name}_id"))
        if type(number) is int and number in vocabulary:
            made[_PREFIX + key] = number
    made[f"{_PREFIX}add_bos_token"] = _starts_with_bos(tokenizer, made.get(f"{_PREFIX}bos_token_id"))
    if template := _template(folder, settings):
        made[_TEMPLATE] = template
    return made


def _named_token(token: Any, tokenizer: Tokenizer) -> int | None:
    token = token.get("content") if isinstance(token, dict) else token
    return None if token is None else tokenizer.token_to_id(token)


def _first(value: Any) -> Any:
    """GGUF has one token of each kind, a configuration may list several ends."""
    return next(iter(value), None) if isinstance(value, list) else value


def _name_of_cut(content: Mapping[str, Any], path: Path) -> str:
    model = content.get("model") or {}
    kind, affixes = model.get("type"), model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    decoder = (content.get("decoder") or {}).get("type")
    if kind != "BPE" or decoder != "ByteLevel" or affixes or content.get("normalizer"):
        raise ValueError(f"{path} is {kind!r} with its own rules; byte-level BPE alone can be written to GGUF")
    found, whole = _normal_form(content.get("pre_tokenizer")), bool(model.get("ignore_merges"))
    for name in _NAMES:
        probe = Tokenizer(models.BPE())
        probe.pre_tokenizer = _cut(name)
        if (_normal_form(json.loads(probe.to_str())["pre_tokenizer"]), name == _LLAMA_3_RULES) == (found, whole):
            return name
    raise ValueError(
        f"{path}: llama.cpp has no name known here for its pre_tokenizer{' with ignore_merges true' if whole else ''}; "
        f"known are {', '.join(_NAMES)}"
    )


def _normal_form(pre_tokenizer: Any) -> Any:
    """Without what only concerns offsets."""
    if isinstance(pre_tokenizer, dict):
        return {key: _normal_form(value) for key, value in pre_tokenizer.items() if key != "trim_offsets"}
    return [_normal_form(part) for part in pre_tokenizer] if isinstance(pre_tokenizer, list) else pre_tokenizer


def _starts_with_bos(tokenizer: Tokenizer, bos: int | None) -> bool:
    return bos is not None and list(tokenizer.encode("a").ids[:1]) == [bos]


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / TEMPLATE_FILE
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by their names
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
