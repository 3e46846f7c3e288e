"""What of a conversation is an assistant's, whichever way its template writes that."""

import pytest

from arctic_workers.chat.template import ChatTemplate, TextError

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "assistant: x"},
    {"role": "assistant", "content": "y"},
]
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{%- if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<end>{% endgeneration %}{% else %}{{ m.content }}<end>{% endif %}"
    "{{ '\\n' }}{% endfor %}"
)
WHOLE = "<system>be brief<end>\n<user>hi<end>\n<assistant>ho<end>\n<user>assistant: x<end>\n<assistant>y<end>\n"


@pytest.mark.parametrize(("source", "end"), [(PLAIN, "<end>\n"), (MARKED, "<end>")])
def test_answers_are_found_behind_their_prompts_or_where_the_template_marks_them(source: str, end: str) -> None:
    template = ChatTemplate(source, "here", {})
    text, answers = template.conversation(CHAT)
    assert text == WHOLE == template.render(CHAT, add_generation_prompt=False)
    assert [text[begin:stop] for begin, stop in answers] == [f"ho{end}", f"y{end}"]


def test_a_model_without_a_template_has_answers_too() -> None:
    text, answers = ChatTemplate(None, "here", {}).conversation(CHAT[1:3])
    assert text == "user: hi\nassistant: ho\n"
    assert [text[begin:end] for begin, end in answers] == [" ho\n"]


def test_a_template_that_writes_no_answer_behind_its_prompt_is_told_how_to_mark_them() -> None:
    source = "{{ messages | length }}" + PLAIN  # all of a text depends on what follows
    with pytest.raises(TextError, match=r"mark answers in it with \{% generation %\}"):
        ChatTemplate(source, "here", {}).conversation(CHAT)


def test_a_conversation_that_begins_with_an_answer_is_refused() -> None:
    with pytest.raises(TextError, match="answers nothing"):
        ChatTemplate(PLAIN, "here", {}).conversation(CHAT[2:])


def test_clients_cannot_ask_for_marks() -> None:
    with pytest.raises(TextError, match="arctic_marks"):
        ChatTemplate(MARKED, "here", {}).render(CHAT, variables={"arctic_marks": True})
