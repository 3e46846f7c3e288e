"""IFEval's instructions: arguments, a text that follows, and one that does not."""

from typing import Any

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["cat", "dog"]}, "A Cat and a dog.", "A cat."),
    "keywords:frequency": ({"keyword": "cat", "frequency": 2, "relation": "at least"}, "cat, cats", "cat"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "cats", "the Cat sat"),
    "keywords:letter_frequency": ({"letter": "A", "let_frequency": 2, "let_relation": "less than"}, "abc", "Aha, a"),
    "language:response_language": (
        {"language": "de"},
        "Das ist ein Satz in deutscher Sprache.",
        "This is a sentence in another language.",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        "Dr. Smith went home. He slept.",
        "One. Two. Three.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo\n***\n", "one\n***\n\n***\ntwo"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "one two-three", "one two"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "So"},
        'First.\n\n"So, what?"',
        "So.\n\nFirst.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] of [town]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Yes.\nP. S. no", "Yes. PS no"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* one\n- two", "* one\n** two"),
    "detectable_format:constrained_response": ({}, "Well: My answer is maybe.", "My answer is perhaps."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*one* and *two*", "*one* and * *"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nSECTION two",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<joy>>\ntext", "<< >>"),
    "combination:two_responses": ({}, "one\n******\ntwo", "one\n******\none"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    "startend:end_checker": ({"end_phrase": "The end."}, 'All. the end."', "The end. All."),
    "startend:quotation": ({}, ' "all" ', '"'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA and ESA",
        "NASA and Esa",
    ),
    "change_case:english_capital": ({}, "THIS IS WHAT WAS ASKED FOR", "This is not what was asked for"),
    "change_case:english_lowercase": ({}, "this is what was asked for", "das ist ein ganz anderer satz hier"),
    "punctuation:no_comma": ({}, "one two", "one, two"),
}
