"""The OpenAI API's requests, checked, and its errors. Only what can be done is taken; all else is refused by name."""

from codecs import BOM_UTF8
from typing import Annotated, Any, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, from_json

MOST_LOGPROBS = 20
MOST_STOPS = 32
"""OpenAI takes 4; suites send more."""
MOST_CHOICES = 128
"""Of a prompt, as with OpenAI."""
MOST_BIASES = 1024
MOST_STOP_TOKENS = 1024
_LONGEST_STOP = 256
_LONGEST_SHOWN = 200
"""Characters of what a client sent that are told it."""

RequestType = TypeVar("RequestType", bound="_Request")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "detokenize": (True,),
}
"""Parameters of the API that are not supported, with the values under which they change nothing, as null does."""
_WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "prediction",
    "cache_prompt",
    "cache_salt",
    "request_id",
    "verbosity",
)
"""Parameters that never change an answer."""
_NOTHING: tuple[Any, ...] = (False, "", [], {})
"""Values under which a parameter that nobody here knows asks for nothing."""

FIRST_FAULT = Field(fail_fast=True)
"""For lists: only the first fault is told, and to look for more of them can take seconds in which all else stops."""
Strings = Annotated[list[str], FIRST_FAULT]
Tokens = Annotated[list[int], FIRST_FAULT]
Count = Annotated[int, Field(ge=1, lt=2**63)]
CountOrNone = Annotated[int, Field(ge=0, lt=2**63)]
"""JSON's numbers may be so long that their sums can't be written."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ApiError(Exception):
    """An answer other than 200, in the form of OpenAI's errors."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry = retry
        """Seconds after which to try again."""

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, data: Any) -> Any:
        """Null is what is left out, as with OpenAI."""
        if not isinstance(data, dict):
            raise ValueError("the body is no JSON object; write one")
        kept = {key: value for key, value in data.items() if value is not None and key not in _WITHOUT_EFFECT}
        for key in _NEUTRAL:
            if key in kept and key not in cls.model_fields:
                _check_neutral(key, kept.pop(key))
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: value for key, value in kept.items() if key in known or value not in _NOTHING}


class UnsupportedParameter(Exception):  # noqa: N818 - becomes an ApiError; pydantic would wrap a ValueError
    """A parameter of the API that is asked for and cannot be done."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def _check_neutral(key: str, value: Any) -> None:
    if value not in (neutral := _NEUTRAL[key]):
        raise UnsupportedParameter(key, f"'{key}' is not supported; leave it out or write {neutral[0]!r}")


class StreamOptions(BaseModel):
    """What else a stream carries."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool | None = False


class CommonRequest(_Request):
    """What completions and chats have in common."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Not OpenAI's, but what every open server has; 0 and -1 are no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """This and what follows up to `stop_token_ids` has the names that vLLM has for it, where OpenAI has none."""
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    min_tokens: CountOrNone | None = None
    ignore_eos: bool | None = False
    stop_token_ids: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    best_of: int | None = None
    seed: Seed | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """Not OpenAI's, but vLLM's; lower is earlier, and 0 is what others have."""
    stop: str | Strings | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _check_biases(cls, value: Any) -> Any:
        return _limited(value, dict, MOST_BIASES)

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _check_stop_tokens(cls, value: Any) -> Any:
        return _limited(value, list, MOST_STOP_TOKENS)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        strings = _stops(value)
        if len(strings) > MOST_STOPS:
            raise ValueError(f"{len(strings)} stop strings are too many; write at most {MOST_STOPS}")
        if any(len(string) > _LONGEST_STOP for string in strings):
            raise ValueError(f"a stop string has at most {_LONGEST_STOP} characters")
        return value

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        return self

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of not in (None, self.choices):
            message = f"'best_of' chooses nothing here; leave it out or write {self.choices}, as many as 'n'"
            raise UnsupportedParameter("best_of", message)
        return self

    @property
    def choices(self) -> int:
        """How many answers to a prompt are asked for."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return _stops(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def _stops(value: str | list[str] | None) -> list[str]:
    """Return the stop strings that are given; an empty one stops nothing."""
    return [string for string in ([value] if isinstance(value, str) else value or ()) if string]


def _limited(value: Any, kind: type[dict[Any, Any]] | type[list[Any]], most: int) -> Any:
    """Refuse too many tokens before each of them is looked at."""
    if isinstance(value, kind) and len(value) > most:
        raise ValueError(f"{len(value)} tokens are too many; write at most {most}")
    return value


def _check_logprobs(value: Any) -> Any:
    """A chat's are true or false."""
    if value is True:
        raise ValueError(f"write how many of the likeliest tokens to tell of, 0 to {MOST_LOGPROBS}; null is none")
    return None if value is False else value


class CompletionRequest(CommonRequest):
    """`POST /v1/completions`."""

    prompt: str | Tokens | Strings | Annotated[list[Tokens], FIRST_FAULT]
    max_tokens: CountOrNone | None = None
    echo: bool | None = False
    add_special_tokens: bool = True
    """Whether the tokenizer puts its own special tokens around prompts that are texts."""
    logprobs: Annotated[Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None, BeforeValidator(_check_logprobs)] = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, in order; at least one."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if not given or isinstance(given[0], int):
            return [cast("list[int]", given)]
        return given


def _check_text(kind: str) -> str:
    if kind != "text":
        raise ValueError(
            f"a part of type {shortened(kind)} can't be read: this model reads text alone; write parts of type text"
        )
    return kind


class TextPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Annotated[str, AfterValidator(_check_text)]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _read_refusal(cls, data: Any) -> Any:
        """What an assistant refused with is what it said."""
        match data:
            case {"type": "refusal", "refusal": str(text)}:
                return {"type": "text", "text": text}
        return data


class Message(BaseModel):
    """One message of a conversation, with whatever else clients keep of it: tool calls, names, reasons."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Annotated[str, Field(min_length=1)]
    content: str | Annotated[list[TextPart], FIRST_FAULT] | None = None

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        """An assistant's message may be tool calls alone."""
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing; write text, or a list of parts of type text")
        return self

    def plain(self) -> dict[str, Any]:
        """Return what a chat template reads: the message as it is, but for null, which templates don't expect."""
        kept = {key: value for key, value in self.model_dump(exclude_unset=True).items() if value is not None}
        return {"content": ""} | kept


class Conversation(BaseModel):
    """What a chat template is asked with; all but the messages is not OpenAI's, but what open servers have."""

    messages: Annotated[list[Message], Field(min_length=1), FIRST_FAULT] | None = None
    add_generation_prompt: bool = True
    """Whether an answer begins after the messages."""
    continue_final_message: bool = False
    """Whether the answer goes on with the last message."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its own special tokens to those that the chat template writes; None where the request
    leaves it open.
    """
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template."""
    tools: Annotated[list[dict[str, Any]], FIRST_FAULT] | None = None
    """What the chat template tells the model of tools."""

    @property
    def adds_special(self) -> bool:
        """Whether the tokenizer adds special tokens of its own."""
        return bool(self.add_special_tokens)

    @model_validator(mode="after")
    def _check_final_message(self) -> Self:
        if self.continue_final_message and self.messages and self.messages[-1].content is None:
            raise ValueError("'continue_final_message': the last message has no text to continue; write its content")
        return self


class ChatRequest(CommonRequest, Conversation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1), FIRST_FAULT]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tool_choice: Any = None

    @field_validator("tool_choice")
    @classmethod
    def _check_tool_choice(cls, value: Any) -> Any:
        _check_neutral("tool_choice", value)
        return value

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        """Calls are not read from answers: the model may only know of tools."""
        if self.tools and self.tool_choice != "none":
            message = "'tools' is not supported but with 'tool_choice': 'none'; leave it out or write that too"
            raise UnsupportedParameter("tools", message)
        return self

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self


class TokenizeRequest(_Request, Conversation):
    """`POST /tokenize`: a text under vLLM's name for it or llama.cpp's, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special: bool | None = None
    """As llama.cpp calls `add_special_tokens`."""
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(given is not None for given in (self.prompt, self.content, self.messages)) != 1:
            raise ValueError("write exactly one of 'prompt', 'content' and 'messages'")
        return self

    @property
    def text(self) -> str:
        """The text, where it is no conversation."""
        return self.prompt or self.content or ""

    @property
    def adds_special(self) -> bool:
        """Whether the tokenizer adds special tokens of its own: left open, to a `prompt`, as with vLLM, and neither to
        a conversation, as there, nor to a `content`, as with llama.cpp.
        """
        given = self.add_special if self.add_special_tokens is None else self.add_special_tokens
        return self.prompt is not None if given is None else given


class DetokenizeRequest(_Request):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: Tokens


def shortened(text: str) -> str:
    """Return what a client sent, as far as a sentence to it has room."""
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def parse(kind: type[RequestType], body: bytes) -> RequestType:
    """Read a request's body. ApiError 400 that names the first parameter that is wrong and says what to write."""
    try:
        data = from_json(body.removeprefix(BOM_UTF8))  # which editors on Windows write
    except ValueError as error:
        raise ApiError(400, f"The body is no JSON: {error}", code="invalid_value") from None
    try:
        # In two steps: pydantic's own one takes three times as long where a body has a million numbers.
        return kind.model_validate(data)
    except UnsupportedParameter as error:
        raise ApiError(400, str(error), param=error.param, code="unsupported_parameter") from None
    except ValidationError as error:
        found = cast("list[InitErrorDetails]", error.errors(include_url=False))
        # Anew, in the words of JSON: it has arrays and objects, and not lists and instances of our types.
        worded = ValidationError.from_exception_data(error.title, found, input_type="json")
        faults = worded.errors(include_url=False, include_context=False)
        # Of the alternatives of a type, the one that came furthest is what was meant.
        fault = max(
            (each for each in faults if each["loc"][:1] == faults[0]["loc"][:1]), key=lambda each: len(each["loc"])
        )
        # The alternatives of a type stand in the place of a fault too, and clients know nothing of them.
        inner = [str(step) for step in fault["loc"][1:] if step != "str" and "[" not in str(step)]
        param = ".".join(shortened(step) for step in [*map(str, fault["loc"][:1]), *inner]) or None
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "there is no such parameter; leave it out"
        raise ApiError(400, f"{param}: {message}" if param else message, param=param, code="invalid_value") from None
