"""Chat templates mean what they mean in transformers, and their faults are told with their place."""

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.chat.template import ChatTemplate, TextError
from arctic_workers.inference.http.text import Text

HI = [{"role": "user", "content": "hi"}]


def test_chat_uses_the_models_template_in_a_sandbox(text: Text, folder: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]

    def template(source: str) -> Text:
        settings = {"chat_template": source, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return Text(folder)

    own = template("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert own.chat.render(messages) == "<s>[user]hi"
    assert own.chat.is_marked
    assert 1 in own.stop_tokens
    with pytest.raises(TextError, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").chat.render(messages)
    with pytest.raises(TextError, match="refuses"):
        template("{{ messages.__class__.__mro__ }}").chat.render(messages)
    assert text.chat.render(messages) == "user: hi\nassistant:"
    assert not text.chat.is_marked


def test_a_template_named_default_is_found_among_others(folder: Path) -> None:
    several = [{"name": "tools", "template": "y"}, {"name": "default", "template": "own"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    own = Text(folder)
    assert own.chat.render([]) == "own"


def test_templates_have_what_hugging_face_gives_them(folder: Path) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ tools is none }} {{ strftime_now('%Y') | length }}"
    )
    (folder / "chat_template.jinja").write_text(source)
    messages = [{"role": "system", "content": "no"}, {"role": "user", "content": "hi "}]
    assert Text(folder).chat.render(messages) == "hi True 4"


def test_a_template_that_does_not_compile_is_named_at_the_start(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% for %}"}))
    with pytest.raises(TextError, match=r"tokenizer_config\.json: chat_template is no template"):
        Text(folder)


def test_a_template_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TextError, match=r"chat_template\.jinja cannot be read as text in UTF-8"):
        Text(folder)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ {'b': 'é', 'a': '<'} | tojson }}", '{"b": "é", "a": "<"}'),
        ("{{ {'b': 'é'} | tojson(ensure_ascii=True) }}", '{"b": "\\u00e9"}'),
        ("{{ {'b': 'é'} | tojson(ensure_ascii=False) }}", '{"b": "é"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ wings }}", "2"),
    ],
)
def test_filters_take_the_arguments_that_they_take_there(source: str, text: str) -> None:
    assert ChatTemplate(source, "", {}).render(HI, variables={"wings": 2}) == text


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("a\n{{ 1 / 0 }}", 2, "division by zero"),
        ("{{ messages[7].content }}", 1, "no element 7"),
        ("{% macro f() %}\n\n{{ f() }}{% endmacro %}{{ f() }}", 3, "recursion"),
        ("\n\n\n{{ messages[0].content.wings.span }}", 4, "wings"),
        ("\n{{ messages[0].content + 1 }}", 2, "TypeError"),
        ("\n\n{{ raise_exception('roles must alternate') }}", 3, "roles must alternate"),
    ],
)
def test_a_fault_inside_a_template_names_its_line(source: str, line: int, words: str) -> None:
    with pytest.raises(TextError, match=f"at its line {line}: .*{words}"):
        ChatTemplate(source, "", {}).render(HI)


PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content }}", "a\nb"),
        ("{{ 'x' + messages[0].content }}", "xa\nb"),
        (
            "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}"
            "{% for part in messages[0].content %}{{ part.text }}{{ '|' if not loop.last }}{% endfor %}{% endif %}",
            "a|b",
        ),
    ],
)
def test_parts_reach_a_template_that_reads_them_and_are_joined_for_others(source: str, text: str) -> None:
    assert ChatTemplate(source, "", {}).render(PARTS) == text


_PARTS_OF = (
    "{% for m in messages %}{% if m.role == 'ROLE' and m.content is not string %}"
    "{% for part in m.content %}{{ part.text }}{{ '|' if not loop.last }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %};{% endfor %}"
)


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_parts_reach_a_template_only_in_the_roles_of_which_it_reads_them(role: str) -> None:
    template = ChatTemplate(_PARTS_OF.replace("ROLE", role), "", {})
    for each in ("system", "developer", "user", "assistant", "tool", "ipython"):
        message = {"role": each, "content": PARTS[0]["content"]}
        assert template.render([message]) == ("a|b;" if each == role else "a\nb;")


def test_a_template_that_refuses_some_roles_has_the_parts_of_the_others() -> None:
    """As of those that want a user's message and an assistant's in turn."""
    begins = "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}"
    template = ChatTemplate(begins + _PARTS_OF.replace("m.role == 'ROLE' and ", ""), "", {})
    answer = {"role": "assistant", "content": PARTS[0]["content"]}
    assert template.render([*PARTS, answer]) == "a|b;a|b;"


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "call12345", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call12345"},
    ]


EACH_CALL = "{% for m in messages if m.tool_calls %}{% for call in m.tool_calls %}{% set f = call.function %}"
ARGUMENTS = {
    "as JSON": ("{{ f.arguments | tojson }}", '{"city": "Rom", "days": 2}'),
    "one by one": ("{% for k, v in f.arguments | items %}{{ k }}={{ v }};{% endfor %}", "city=Rom;days=2;"),
    "either": (
        "{% if f.arguments is string %}{{ f.arguments }}{% else %}{{ f.arguments | tojson }}{% endif %}",
        '{"city": "Rom", "days": 2}',
    ),
    "as text": ("{{ 'call ' + f.arguments }}", 'call {"city":"Rom","days":2}'),
}


@pytest.mark.parametrize(("source", "text"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_the_arguments_of_a_call_reach_a_template_as_it_reads_them(source: str, text: str) -> None:
    """Clients keep them as they got them: JSON in a text, of which most templates would make JSON once more."""
    template = ChatTemplate(f"{EACH_CALL}{source}{{% endfor %}}{{% endfor %}}", "", {})
    assert template.render(called('{"city":"Rom","days":2}')) == text
    assert template.conversation(called('{"city":"Rom","days":2}'))[0] == text


KEPT = ["Rom", "[1]", '{"a": "\\ud800"}', '{"a": "\ud800"}', '{"a":' * 100_000, {"a": 1}, None, 5]


@pytest.mark.parametrize("arguments", KEPT, ids=range(len(KEPT)))
def test_arguments_that_are_no_text_of_an_object_stay_as_they_are(arguments: Any) -> None:
    template = ChatTemplate(f"{EACH_CALL}{{{{ f.arguments | tojson }}}}{{% endfor %}}{{% endfor %}}", "", {})
    assert template.render(called(arguments)) == json.dumps(arguments, ensure_ascii=False)


def test_a_call_without_arguments_has_none() -> None:
    template = ChatTemplate(f"{EACH_CALL}{{{{ f.arguments | tojson }}}}{{% endfor %}}{{% endfor %}}", "", {})
    assert template.render(called("")) == "{}"
    odd = [*HI, {"role": "assistant", "content": "", "tool_calls": [{}, "f", {"function": "f"}]}]
    assert ChatTemplate("{{ messages[1].tool_calls | length }}", "", {}).render(odd) == "3"


@pytest.mark.parametrize("filtered", ["m.content", "m.content | trim"])
def test_an_answer_goes_on_with_the_last_message(filtered: str) -> None:
    source = f"{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ {filtered} }}}}</>{{% endfor %}}"
    source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    template = ChatTemplate(source, "", {})
    begun = [*HI, {"role": "assistant", "content": "well "}]
    text = template.render(begun, continue_final=True)
    assert text == ("<user>hi</><assistant>well " if filtered == "m.content" else "<user>hi</><assistant>well")
    assert template.render(HI, add_generation_prompt=False) == "<user>hi</>"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "assistant", "content": None}], "has no text to continue"),
        ([{"role": "system", "content": "x"}], "leaves out or changes"),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(messages: list[dict[str, Any]], words: str) -> None:
    template = ChatTemplate("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "", {})
    with pytest.raises(TextError, match=words):
        template.render(messages, continue_final=True)


def test_variables_do_not_stand_for_what_has_a_place_of_its_own() -> None:
    with pytest.raises(TextError, match="messages has a place of its own"):
        ChatTemplate("{{ messages }}", "", {}).render(HI, variables={"messages": []})


def test_a_model_without_a_template_reads_calls_and_their_results_too() -> None:
    call = {"function": {"name": "f"}}
    history = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "42"}]
    text = ChatTemplate(None, "", {}).render(history)
    assert text == 'assistant: [{"function": {"name": "f"}}]\ntool: 42\nassistant:'


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def test_a_template_sees_the_tools_that_a_conversation_has() -> None:
    template = ChatTemplate("{% if tools %}{{ tools | tojson }}{% else %}none{% endif %}", "", {})
    assert json.loads(template.render(HI, tools=[TOOL])) == [TOOL]
    assert [template.render(HI, tools=tools) for tools in (None, [])] == ["none", "none"]
