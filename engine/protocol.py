"""What parent and worker say to each other: one JSON object a line, validated on both sides."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from moetune.engine.config import EngineConfig
from moetune.engine.generation import GenerationRequest, GenerationStats, TextChunk
from moetune.engine.measurement import Failed, Measurement, Trace
from moetune.engine.passage import Passage, TokenScores
from moetune.engine.routing import RoutedBatch
from moetune.engine.serving import Event, SequenceRequest, ServingState


@dataclass(frozen=True)
class Load:
    """Load the model as `config` places it; None loads the vocabulary only. Answer: `Ready`."""

    config: EngineConfig | None
    kind: Literal["load"] = "load"


@dataclass(frozen=True)
class Measure:
    """Apply a configuration with the loaded placement and measure it. Answer: `Measured`."""

    config: EngineConfig
    trace: Trace
    passes: int
    kind: Literal["measure"] = "measure"


@dataclass(frozen=True)
class Tokenize:
    """Answer: `Tokens`."""

    text: str
    kind: Literal["tokenize"] = "tokenize"


@dataclass(frozen=True)
class Render:
    """Put a prompt together without computing anything. Answer: its `Tokens`."""

    request: GenerationRequest
    kind: Literal["render"] = "render"


@dataclass(frozen=True)
class Generate:
    """Answer: any number of `Chunk`, then `Generated`.

    Right after another one with the same configuration, what both prompts begin with is not computed again, and slots
    stay as they are. Whatever is sent meanwhile ends it, early but in good order.
    """

    config: EngineConfig
    request: GenerationRequest
    kind: Literal["generate"] = "generate"


@dataclass(frozen=True)
class Stop:
    """End a `Generate`, if there is still one. No answer of its own."""

    kind: Literal["stop"] = "stop"


@dataclass(frozen=True)
class Route:
    """Compute the tokens and tell which experts were chosen for each. Answer: `Routed`.

    begins: they are the beginning of a text; else they follow the tokens of the last `Route`. At most `n_ubatch`
    tokens a request, and one position of the context is the model's own (BOS).
    """

    config: EngineConfig
    tokens: tuple[int, ...]
    begins: bool
    kind: Literal["route"] = "route"


@dataclass(frozen=True)
class Score:
    """Compute the passage with `base` and with each of `others`, all placed alike, and compare. Answer: `Scored`."""

    base: EngineConfig
    others: tuple[EngineConfig, ...]
    passage: Passage
    kind: Literal["score"] = "score"


@dataclass(frozen=True)
class Serve:
    """Serve up to `n_sequences` requests at once, each with a context of `config`'s size. Answer: `Serving`.

    From then on, until `Quit`, only `Submit` and `Cancel` are heard, and `Said` and `State` come as they happen.
    """

    config: EngineConfig
    n_sequences: int
    kind: Literal["serve"] = "serve"


@dataclass(frozen=True)
class Submit:
    """Begin a request, or let it wait. Answer: any number of `Said` with its id, to `Finished` or `Rejected`."""

    request: SequenceRequest
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True)
class Cancel:
    """Forget a request, whatever it is at. No answer."""

    id: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True)
class Quit:
    """Free everything and exit 0. No answer."""

    kind: Literal["quit"] = "quit"


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    load_s: float
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True)
class Measured:
    """The result of `Measure`; load_s is filled in by the parent, who knows whether a load was needed."""

    measurement: Measurement
    kind: Literal["measured"] = "measured"


@dataclass(frozen=True)
class Tokens:
    """The result of `Tokenize`."""

    tokens: tuple[int, ...]
    kind: Literal["tokens"] = "tokens"


@dataclass(frozen=True)
class Chunk:
    """Text of a generation in progress."""

    chunk: TextChunk
    kind: Literal["chunk"] = "chunk"


@dataclass(frozen=True)
class Generated:
    """The end of a generation."""

    stats: GenerationStats
    kind: Literal["generated"] = "generated"


@dataclass(frozen=True)
class Routed:
    """The result of `Route`."""

    batch: RoutedBatch
    kind: Literal["routed"] = "routed"


@dataclass(frozen=True)
class Scored:
    """The result of `Score`, in the order of its `others`."""

    scores: tuple[TokenScores, ...]
    kind: Literal["scored"] = "scored"


@dataclass(frozen=True)
class Serving:
    """The result of `Serve`: the tokens that one request's prompt and reply have room for."""

    n_ctx: int
    kind: Literal["serving"] = "serving"


@dataclass(frozen=True)
class Said:
    """Something about one of the requests that are being served."""

    event: Event
    kind: Literal["said"] = "said"


@dataclass(frozen=True)
class State:
    """What the serving engine is at: every few seconds, more often while it is busy, and when it becomes idle."""

    state: ServingState
    kind: Literal["state"] = "state"


@dataclass(frozen=True)
class Refused:
    """Any request can end like this; the worker stays usable."""

    failed: Failed
    kind: Literal["refused"] = "refused"


Request = Load | Measure | Tokenize | Render | Generate | Stop | Route | Score | Serve | Submit | Cancel | Quit
Response = Ready | Measured | Tokens | Chunk | Generated | Routed | Scored | Serving | Said | State | Refused

_requests: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
_messages: TypeAdapter[Request | Response] = TypeAdapter(Annotated[Request | Response, Field(discriminator="kind")])
_responses: TypeAdapter[Response] = TypeAdapter(Annotated[Response, Field(discriminator="kind")])


def encode(message: Request | Response) -> bytes:
    """One line, newline included."""
    return _messages.dump_json(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises pydantic.ValidationError for anything but a request."""
    return _requests.validate_json(line)


def decode_response(line: bytes) -> Response:
    """Raises pydantic.ValidationError for anything but a response."""
    return _responses.validate_json(line)
