"""What clients may ask: OpenAI's request bodies, checked, and turned into what the engine takes."""

import secrets
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moetune.engine.generation import ChatMessage, Sampling
from moetune.engine.serving import SequenceRequest
from moetune.server.errors import ApiError

_MAX_MESSAGES = 4096
_MAX_STOPS = 16
_MAX_SEED = 2**32 - 1

# What other servers offer and this one does not. Ignoring it would give another answer than the one asked for.
_UNSUPPORTED = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "tool_choice": (None, "auto", "none"),
    "top_k": (None, 0, -1),
    "min_p": (None, 0, 0.0),
    "repeat_penalty": (None, 1, 1.0),
    "repetition_penalty": (None, 1, 1.0),
}

_Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    """A number in quotes is no number: a client that sends one is told so."""

    model_config = ConfigDict(strict=True)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None

    def for_template(self) -> ChatMessage:
        """Templates know no developers: that is what OpenAI calls the system's author."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class _StreamOptions(_Strict):
    include_usage: bool = False


class _Common(_Strict):
    """Fields of both kinds of request. Unknown ones are ignored, as clients send many that mean nothing here."""

    model_config = ConfigDict(extra="allow")

    model: str
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MAX_STOPS)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)

    @model_validator(mode="after")
    def _offered(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            # In Python 0 equals False, which for log-probabilities is another wish.
            if name in _UNSUPPORTED and (type(value), value) not in [(type(v), v) for v in _UNSUPPORTED[name]]:
                raise ApiError(400, f"'{name}' is not supported by this server.", "unsupported_parameter", name)
        return self

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream shall end with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _sequence(self, request_id: int, prompt: str | tuple[ChatMessage, ...], limit: int | None) -> SequenceRequest:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        sampling = Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(32) if self.seed is None else self.seed & _MAX_SEED,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )
        return SequenceRequest(request_id, prompt, limit, sampling, stop)


class CompletionRequest(_Common):
    """The body of `/v1/completions`; several prompts in one request are refused."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    def sequence(self, request_id: int) -> SequenceRequest:
        """For the engine. OpenAI's default of 16 tokens holds here too."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return self._sequence(request_id, prompt, self.max_tokens or 16)


class ChatRequest(_Common):
    """The body of `/v1/chat/completions`."""

    messages: list[_Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)

    def sequence(self, request_id: int) -> SequenceRequest:
        """For the engine; without a limit of its own, as long as the context has room."""
        messages = tuple(message.for_template() for message in self.messages)
        return self._sequence(request_id, messages, self.max_completion_tokens or self.max_tokens)


_FIELDS = {
    name for body in (CompletionRequest, ChatRequest, _StreamOptions, _Message, _TextPart) for name in body.model_fields
}
Body = TypeVar("Body", CompletionRequest, ChatRequest)


def parse(kind: type[Body], body: bytes) -> Body:
    """The request in `body`. Raises ApiError(400), naming the first thing that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Between the fields' names are those of the types that were tried.
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _FIELDS)
        raise ApiError(400, f"{where}: {first['msg']}" if where else first["msg"], None, where or None) from error
