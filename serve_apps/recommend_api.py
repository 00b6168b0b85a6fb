"""What goes over the wire at /v1/recommend: the request, the response, and the pieces of a streamed one."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from serve_apps.api import MAX_HITS, DialogueRequest, ErrorDetail, Wire

Mode = Literal["rec", "gen"]
RecommendStage = Literal["decode", "link", "generate", "wait", "total"]
MODE_HELP = "rec: the reply may name products; gen: it names none."


class RecommendRequest(DialogueRequest):
    """A dialogue up to the turn that is wanted; exactly one of ``turns`` and ``messages``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"turns": [{"speaker": "user", "text": "What would go well with a blue mug?"}], "k": 5},
                {"messages": [{"role": "user", "content": "Something like it, please"}], "mode": "rec", "stream": True},
            ]
        }
    )
    k: int = Field(default=10, ge=1, le=MAX_HITS, description="Likeliest products wanted beside the reply.")
    mode: Mode | None = Field(default=None, description=f"{MODE_HELP} Absent: the student decides.")
    stream: bool = Field(default=False, description="Send the reply piece by piece, as server-sent events.")


class ReplyPart(Wire):
    """Words of a reply, or the title of a product."""

    text: str
    item: str | None = Field(description="Id of the product; null for words.")
    start: int = Field(ge=0, description="First character of the part in the reply's text (Unicode code points).")
    end: int = Field(ge=0, description="Behind its last character.")


class ReplyOut(Wire):
    """What the student says."""

    text: str
    parts: tuple[ReplyPart, ...] = Field(description="Words and products in order; their texts joined are the text.")


class ModeOut(Wire):
    """Whether the reply recommends."""

    name: Mode = Field(description=MODE_HELP)
    probability: float | None = Field(
        ge=0, le=1, description="Of this mode against the other, asked for or not; null where the student has no modes."
    )


class ItemOut(Wire):
    """A product that the student had in mind."""

    id: str
    title: str
    score: float = Field(ge=0, le=1, description="Probability among the products that could have been named there.")
    named: bool = Field(description="Whether the reply names it.")
    image: str | None = Field(description="Path of its picture on this service, if it has one.")


class TokenMassOut(Wire):
    """A decoded token, control tokens in brackets."""

    token: str
    item_mass: float = Field(ge=0, le=1, description="The student's summed probability of all products at this token.")


class RecommendResponse(Wire):
    """The reply to a dialogue, with what was used and how long it took."""

    id: str = Field(description="Request id; also in the header X-Request-Id and in the log.")
    reply: ReplyOut
    mode: ModeOut
    items: tuple[ItemOut, ...] = Field(description="The likeliest products, likeliest first.")
    items_from: Literal["reply", "context"] = Field(
        description="reply: the likeliest at the place of the reply's first product; context: the reply names none, "
        "and these are what the student would name first if it recommended."
    )
    item_mass: tuple[TokenMassOut, ...] = Field(
        description="Token by token how much the student itself leans towards naming a product. Teachers and their "
        "gates are not loaded here."
    )
    degraded: tuple[str, ...] = Field(description="Parts that were missing or left out, and why.")
    timings_ms: dict[RecommendStage, float] = Field(
        description="Milliseconds a stage; total is from request to answer."
    )
    artifacts: dict[str, str] = Field(description="Role → kind/name@version of what answered.")


# ---------------------------------------------------------------- pieces of a stream


class ModeEvent(Wire):
    """``event: mode`` comes first; a student without modes sends none unless a mode was asked for."""

    mode: ModeOut


class PieceEvent(Wire):
    """``event: text`` is words to append, ``event: item`` the title of a product."""

    part: ReplyPart


class EndEvent(Wire):
    """``event: end`` comes last: the whole, as without streaming."""

    response: RecommendResponse


class ErrorEvent(Wire):
    """``event: error`` ends a stream that cannot go on."""

    error: ErrorDetail


StreamEvent = ModeEvent | PieceEvent | EndEvent
STREAM_HELP = (
    "The reply; with `stream`, server-sent events, each a line `event: KIND` and a line `data: JSON`: `mode` "
    f"({ModeEvent.__name__}) first, then `text` and `item` ({PieceEvent.__name__}), whose texts joined are the "
    f"reply's, and `end` ({EndEvent.__name__}) last, or `error` ({ErrorEvent.__name__}) where the reply breaks off."
)
