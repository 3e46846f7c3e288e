"""The checkers of IFEval's instructions (Zhou et al. 2023), as `lm_eval/tasks/ifeval/instructions.py` has them.

They judge by the same expressions, to the letter, odd ones among them. Two things differ, as they would make the same
answer score differently from run to run: languages are detected with a fixed seed, and a letter that is none of a to z
is counted as it stands, where the original draws another one.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

Arguments = Mapping[str, Any]
Checker = Callable[[str, Arguments], bool]
LESS = "less than"
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


_LOADING = threading.Lock()


@cache
def _language_detector() -> Any:
    import langdetect

    # It loads its languages at the first text; who comes meanwhile would find it with some of them.
    with _LOADING:
        langdetect.DetectorFactory.seed = 0
        langdetect.detector_factory.init_factory()
    return langdetect


def _language_is(text: str, language: str) -> bool:
    """Return whether a text is in a language; where none can be detected, as of digits, it counts as being so."""
    detector = _language_detector()
    try:
        return bool(detector.detect(text) == language)
    except detector.LangDetectException:
        return True


@cache
def _word_tokenizer() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def sentences(text: str) -> list[str]:
    """Cut a text into sentences as NLTK's Punkt does, by its English model."""
    import punkt

    return list(punkt.sent_tokenize(text))


def words(text: str) -> list[str]:
    """Cut a text into words as NLTK's `word_tokenize` does."""
    return [word for sentence in sentences(text) for word in _word_tokenizer().tokenize(sentence)]


def _by(relation: str | None, count: int, threshold: int) -> bool:
    return count < threshold if relation == LESS else count >= threshold


def _found(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, flags=re.IGNORECASE))


def _paragraphs(text: str, asked: Arguments) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not part.strip() for part in parts[1:-1]):
        return False
    empty = sum(1 for index in {0, len(parts) - 1} if not parts[index].strip())
    return bool(len(parts) - empty == asked["num_paragraphs"])


def _first_word(text: str, asked: Arguments) -> bool:
    parts = re.split(r"\n\n", text)
    count = sum(1 for part in parts if part.strip())
    place = asked["nth_paragraph"]
    if place > count or not (paragraph := parts[place - 1].strip()):
        return False
    word = paragraph.split()[0].strip().lstrip("'").lstrip('"')
    match = re.match(r"[^.,?!'\"]*", word)
    found = match[0].lower() if match else ""
    return bool(count == asked["num_paragraphs"] and found == asked["first_word"].lower())


def _postscript(text: str, asked: Arguments) -> bool:
    marker = asked["postscript_marker"].strip()
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = patterns.get(marker, r"\s*" + marker.lower() + r".*$")
    return bool(re.findall(pattern, text.lower(), flags=re.MULTILINE))


def _bullets(text: str, asked: Arguments) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, flags=re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, flags=re.MULTILINE)
    return bool(len(stars) + len(dashes) == asked["num_bullets"])


def _highlights(text: str, asked: Arguments) -> bool:
    single = [part for part in re.findall(r"\*[^\n\*]*\*", text) if part.strip("*").strip()]
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    double = [part for part in double if part.removeprefix("**").removesuffix("**").strip()]
    return bool(len(single) + len(double) >= asked["num_highlights"])


def _sections(text: str, asked: Arguments) -> bool:
    pattern = r"\s?" + asked["section_spliter"].strip() + r"\s?\d+\s?"
    return bool(len(re.split(pattern, text)) - 1 >= asked["num_sections"])


def _json(text: str, _: Arguments) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, _: Arguments) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, _: Arguments) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    said = [part.strip() for part in parts if part.strip()]
    return len(said) == 2 and said[0] != said[1]


def _capital_words(text: str, asked: Arguments) -> bool:
    count = sum(1 for word in words(text) if word.isupper())
    return _by(asked["capital_relation"], count, asked["capital_frequency"])


def _ends(text: str, asked: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(asked["end_phrase"].strip().lower())


def _quoted(text: str, _: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == '"' and text[-1] == '"'


CHECKERS: dict[str, tuple[tuple[str, ...], Checker]] = {
    "keywords:existence": (
        ("keywords",),
        # All words are tried, also behind one that is missing: reading the data finds patterns that are none so.
        lambda text, asked: not [word for word in asked["keywords"] if not _found(word, text)],
    ),
    "keywords:frequency": (
        ("keyword", "frequency", "relation"),
        lambda text, asked: _by(asked["relation"], _found(asked["keyword"].strip(), text), asked["frequency"]),
    ),
    "keywords:forbidden_words": (
        ("forbidden_words",),
        lambda text, asked: not any(_found(rf"\b{word}\b", text) for word in asked["forbidden_words"]),
    ),
    "keywords:letter_frequency": (
        ("letter", "let_frequency", "let_relation"),
        lambda text, asked: _by(
            asked["let_relation"], Counter(text.lower())[asked["letter"].strip().lower()], asked["let_frequency"]
        ),
    ),
    "language:response_language": (("language",), lambda text, asked: _language_is(text, asked["language"])),
    "length_constraints:number_sentences": (
        ("num_sentences", "relation"),
        lambda text, asked: _by(asked["relation"], len(sentences(text)), asked["num_sentences"]),
    ),
    "length_constraints:number_paragraphs": (("num_paragraphs",), _paragraphs),
    "length_constraints:number_words": (
        ("num_words", "relation"),
        lambda text, asked: _by(asked["relation"], len(re.findall(r"\w+", text)), asked["num_words"]),
    ),
    "length_constraints:nth_paragraph_first_word": (("num_paragraphs", "nth_paragraph", "first_word"), _first_word),
    "detectable_content:number_placeholders": (
        ("num_placeholders",),
        lambda text, asked: len(re.findall(r"\[.*?\]", text)) >= asked["num_placeholders"],
    ),
    "detectable_content:postscript": (("postscript_marker",), _postscript),
    "detectable_format:number_bullet_lists": (("num_bullets",), _bullets),
    "detectable_format:constrained_response": (
        (),
        lambda text, _: any(option in text.strip() for option in _OPTIONS),
    ),
    "detectable_format:number_highlighted_sections": (("num_highlights",), _highlights),
    "detectable_format:multiple_sections": (("section_spliter", "num_sections"), _sections),
    "detectable_format:json_format": ((), _json),
    "detectable_format:title": ((), _title),
    "combination:two_responses": ((), _two_responses),
    "combination:repeat_prompt": (
        ("prompt_to_repeat",),
        lambda text, asked: text.strip().lower().startswith(asked["prompt_to_repeat"].strip().lower()),
    ),
    "startend:end_checker": (("end_phrase",), _ends),
    "startend:quotation": ((), _quoted),
    "change_case:capital_word_frequency": (("capital_frequency", "capital_relation"), _capital_words),
    "change_case:english_capital": ((), lambda text, _: text.isupper() and _language_is(text, "en")),
    "change_case:english_lowercase": ((), lambda text, _: text.islower() and _language_is(text, "en")),
    "punctuation:no_comma": ((), lambda text, _: "," not in text),
}
"""By an instruction's name: the arguments that it takes, and whether a text follows it."""
