"""From a conversation to text: the model's chat template, as `transformers` would render it.

Filters, globals and arguments are those of its `utils/chat_template_utils.py` (5.19).
"""

import json
import re
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from os.path import commonprefix
from pathlib import Path
from typing import Any, Self

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic_core import from_json

SETTINGS_FILE = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_DEFAULT = (
    "{% for message in messages %}{{ message.role + ': ' + (message.content or '') }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""For models that come without one: plain words, because such a model knows no special ones."""
_PROBE = "probe"
_ROLES = ("system", "developer", "user", "assistant", "tool")
"""Whose messages a template may read as parts; a message of another role has its text in one piece."""
_END = "\N{OBJECT REPLACEMENT CHARACTER}end of the last message\N{OBJECT REPLACEMENT CHARACTER}"
_ANSWER = tuple(
    f"\N{OBJECT REPLACEMENT CHARACTER}answer {x}\N{OBJECT REPLACEMENT CHARACTER}" for x in ("begins", "ends")
)
_MARKS = "arctic_marks"
"""Variable under which the template marks what an assistant said."""
_OURS = frozenset({"messages", "add_generation_prompt", "tools", "documents", _MARKS})

Message = dict[str, Any]
Spans = list[tuple[int, int]]


class TextError(ValueError):
    """A tokenizer that cannot be loaded, or a prompt that cannot be made; the message is for the client."""


class ChatTemplate:
    """The chat template of one model; `special` are its special tokens by name, as templates know them."""

    def __init__(self, source: str | None, place: str, special: Mapping[str, str]) -> None:
        self.source = source
        """None where the model comes without one."""
        self._template = _compile(_DEFAULT if source is None else source, place)
        self._special = dict(special)
        self.is_marked = source is not None
        """Whether rendered chats have their special tokens already: a model's own template writes them itself."""
        self._reads_objects = self._takes_call({}) or not self._takes_call("{}")
        self._reads_parts = frozenset(role for role in _ROLES if self._can_read_parts(role))
        self._marks_answers = source is not None and bool(re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source))

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, Any], special: Mapping[str, str]) -> Self:
        """Return a model folder's template; `settings` are its `tokenizer_config.json`. TextError if it is none."""
        source, place = _find(folder, settings)
        return cls(source, place, special)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a prompt: for the next answer, or with `continue_final` for the rest of the last message.

        `tools` are what the model is told of, in OpenAI's form; `variables` are further ones of the template.
        TextError if the template refuses the messages.
        """
        if wrong := sorted(_OURS & set(variables or ())):
            raise TextError(f"chat_template_kwargs: {wrong[0]} has a place of its own in the request; leave it out")
        chat = [self._readable(message) for message in messages]
        if continue_final:
            chat[-1] = _marked(chat[-1])
        text = self._run(chat, add_generation_prompt and not continue_final, variables or {}, tools)
        return _before_mark(text) if continue_final else text

    def conversation(self, messages: Sequence[Message]) -> tuple[str, Spans]:
        """Return the text of a whole conversation, and where in it the answers are: what a model is to learn.

        Answers are what the template itself marks (`{% generation %}`), as far as it does; else all that follows the
        prompt for them, up to where the next message begins: with it the sign that ends an answer. TextError if the
        template refuses the messages, or does not write an answer behind its prompt.
        """
        chat = [self._readable(message) for message in messages]
        if self._marks_answers:
            return _cut_marks(self._run(chat, False, {_MARKS: True}))
        text = self._run(chat, False, {})
        answered = [i for i, message in enumerate(chat) if message.get("role") == "assistant"]
        return text, [self._answer(text, chat, i) for i in answered]

    def _answer(self, text: str, chat: Sequence[Message], index: int) -> tuple[int, int]:
        if index == 0:
            raise TextError("the first message is an assistant's, which answers nothing")
        prompt = self._run(chat[:index], True, {})
        if not text.startswith(prompt):
            raise TextError(
                "the model's chat template does not write an answer behind its prompt: "
                "mark answers in it with {% generation %}"
            )
        upto = self._run(chat[: index + 1], False, {})
        return len(prompt), len(commonprefix([text, upto]))  # noqa: RUF071 - character by character is what is meant

    def _run(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        known = {**self._special, **variables, "tools": tools or None, "documents": None}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **known)
        except Exception as error:  # whatever a template does wrong, the server is well
            place, words = _line_of(error), _words(error)
            raise TextError(f"the model's chat template refuses these messages{place}: {words}") from None

    def _can_read_parts(self, role: str) -> bool:
        """Whether the template itself reads content that is a list of parts, as those of models for images do: some do
        so in a user's messages alone.
        """
        arguments = {} if self._reads_objects else "{}"
        parts = [{"type": "text", "text": _PROBE}]
        try:
            whole = self._run(_history(role, _PROBE, arguments), True, {})
            return self._run(_history(role, parts, arguments), True, {}) == whole
        except TextError:
            return False

    def _takes_call(self, arguments: Any) -> bool:
        """Whether the template bears a call with such arguments: a few put other text together with them."""
        try:
            self._run(_history("tool", _PROBE, arguments), True, {})
        except TextError:
            return False
        return True

    def _readable(self, message: Message) -> Message:
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list) and message.get("role") not in self._reads_parts:
            message = message | {"content": "\n".join(part["text"] for part in content)}
        if isinstance(calls, list) and self._reads_objects:
            message = message | {"tool_calls": [_with_object(call) for call in calls]}
        return message


def _history(role: str, content: Any, arguments: Any) -> list[Message]:
    """Return a short history in which such a message has its place, as templates that look for the order want it;
    a tool's answers a call with such arguments.
    """
    asked, message = {"role": "user", "content": _PROBE}, {"role": role, "content": content}
    if role == "user":
        return [message]
    if role == "assistant":
        return [asked, message, asked]
    if role == "tool":
        # Mistral's ids have nine characters.
        call = {"id": "probe1234", "type": "function", "function": {"name": _PROBE, "arguments": arguments}}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        return [asked, called, message | {"name": _PROBE, "tool_call_id": call["id"]}]
    return [message, asked]


def _with_object(call: Any) -> Any:
    """Return a call with its arguments as an object. Clients keep them as JSON in a text, as OpenAI's API has it: of
    that most templates would make JSON once more, and others refuse it.
    """
    match call:
        case {"function": {"arguments": str(text)} as function}:
            with suppress(ValueError, TypeError):  # the latter of half a surrogate pair
                if isinstance(arguments := from_json(text.strip() or "{}"), dict):
                    return call | {"function": function | {"arguments": arguments}}
    return call


def _marked(message: Message) -> Message:
    """Mark the end of a message's text; a space follows, by which a template that strips gives itself away."""
    content = message.get("content")
    if isinstance(content, list) and content:
        last = content[-1]
        return message | {"content": [*content[:-1], last | {"text": last["text"] + _END + " "}]}
    if not isinstance(content, str):
        raise TextError("continue_final_message: the last message has no text to continue; write its content")
    return message | {"content": content + _END + " "}


def _before_mark(text: str) -> str:
    place = text.rfind(_END)
    if place < 0:
        raise TextError("continue_final_message: the model's chat template leaves out or changes the last message")
    return text[:place] if text.startswith(_END + " ", place) else text[:place].rstrip()


def _cut_marks(text: str) -> tuple[str, Spans]:
    """Return a text without its marks, and what was between them."""
    begin, end = _ANSWER
    whole, *marked = text.split(begin)
    spans = []
    for part in marked:
        answer, _, rest = part.partition(end)
        spans.append((len(whole), len(whole) + len(answer)))
        whole += answer + rest
    return whole, spans


def _line_of(error: Exception) -> str:
    """Where in the template an error came from; jinja makes its lines look like those of a file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" at its line {lines[-1]}" if lines else ""


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"


def _compile(source: str, place: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as there
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise TextError(f"{place} is no template: {error}") from None


class _Generation(Extension):
    """`{% generation %}`, which says what an assistant said: it changes no text but for who asks for marks."""

    tags = {"generation"}  # noqa: RUF012 - as the base has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is inside, between marks."""
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            nodes.If(nodes.Name(_MARKS, "load"), [nodes.Output([nodes.TemplateData(mark)])], [], [], lineno=line)
            for mark in _ANSWER
        )
        return [begin, *inside, end]


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _find(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, str]:
    """The template's source, None if the model has none, and where it is."""
    file = folder / _TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"{file} cannot be read as text in UTF-8: {error}") from None
    template = settings.get("chat_template")
    if isinstance(template, list) and all(map(_is_named_template, template)):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    place = f"{folder / SETTINGS_FILE}: chat_template"
    if template is not None and not isinstance(template, str):
        raise TextError(
            f'{place} is {template!r}; write the template\'s text, or a list of objects with "name" and "template"'
        )
    return template, place


def _is_named_template(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))
