"""From a request to a dialogue, every limit checked before the work that it bounds.

Order: body bytes (:class:`~serve_apps.guard.Guard`, while they arrive), turns, product ids and characters, number of
pictures, bytes of each as told by its base64 length, then the widths and heights in the headers, each
and all together, and only then pixels.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from mmd.assistant.types import AssistantQuery
from mmd.config import ServeSettings
from mmd.corpora.images import check_image, image_size
from mmd.corpora.settings import LimitSettings
from mmd.errors import BadRecordError
from mmd.intent.engine import IntentQuery
from mmd.recommend.online import RecommendQuery
from mmd.retrieval.types import Query
from mmd.schema import Dialogue, Image, Speaker, Turn, image_id
from serve_apps.api import (
    ApiError,
    ImagePart,
    IntentRequest,
    MessageIn,
    RetrieveRequest,
    TextPart,
    TurnIn,
)
from serve_apps.chat_api import ChatRequest
from serve_apps.recommend_api import RecommendRequest
from serve_apps.remote import fetch_picture, is_remote

_OTHER_COMMAS = 10_000  # of fields that change nothing, and of instructions, which are left out
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
_ADVICE = {
    "image_empty": "send a picture that has bytes and pixels",
    "image_bomb": "scale the picture down to serve.max_image_megapixels",
    "image_truncated": "save the picture again and send the whole file",
    "not_an_image": "send PNG, JPEG, WebP, GIF or BMP",
}


class Spoken(Protocol):
    """A request with a dialogue in one of its two shapes."""

    @property
    def turns(self) -> Sequence[TurnIn] | None:
        """Our own."""
        ...

    @property
    def messages(self) -> Sequence[MessageIn] | None:
        """OpenAI's."""
        ...


@dataclass(frozen=True, slots=True)
class RetrievalQuery:
    """A question to the retrieval engine, with the pictures that its turns name by id.

    ``each``: ``k`` responses of every modality, whatever is predicted.
    """

    id: str
    query: Query
    images: Mapping[str, Image]
    k: int
    modality: str | None = None
    each: bool = False


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """A turn whose pictures are still addresses, each with the path of its field for error messages."""

    speaker: Speaker
    text: str
    where: str
    images: tuple[tuple[str, str], ...] = ()  # (field path, address)
    item_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SentPicture:
    """A picture's file as it was sent, not yet looked into; ``where`` is the path of its (first) field."""

    id: str
    data: bytes
    where: str


def read_intent_query(request: IntentRequest, request_id: str, limits: ServeSettings) -> IntentQuery:
    """Turn a request into what the intent engine takes; see :func:`read_dialogue`."""
    dialogue, pictures = read_dialogue(request, request_id, limits, _check_recognisable)
    return IntentQuery(dialogue=dialogue, task=request.task, images=pictures)


def read_retrieval_query(request: RetrieveRequest, request_id: str, limits: ServeSettings) -> RetrievalQuery:
    """Turn a request into what the retrieval engine takes; see :func:`read_dialogue`."""
    dialogue, pictures = read_dialogue(request, request_id, limits, _check_answerable)
    return RetrievalQuery(request_id, Query(dialogue.turns), pictures, request.k, request.modality)


def read_recommend_query(request: RecommendRequest, request_id: str, limits: ServeSettings) -> RecommendQuery:
    """Turn a request into what the recommender takes; pictures, which it does not read, are counted and left out.

    Raises:
        ApiError: 400 for anything malformed or too large.
    """
    drafts, field = list(_draft_turns(request)), _field(request)
    _check_sizes(drafts, limits, field)
    _check_answerable(drafts, field)
    turns = tuple(Turn(draft.speaker, draft.text, item_ids=draft.item_ids) for draft in drafts)
    return RecommendQuery(request_id, turns, request.k, request.mode, sum(len(draft.images) for draft in drafts))


def read_chat_query(request: ChatRequest, request_id: str, limits: ServeSettings) -> AssistantQuery:
    """Turn a request into what the assistant takes; see :func:`read_dialogue`."""
    dialogue, pictures = read_dialogue(request, request_id, limits, _check_recognisable)
    return AssistantQuery(request_id, dialogue.turns, pictures, request.options.k, request.options.language)


def read_dialogue(
    request: Spoken,
    request_id: str,
    limits: ServeSettings,
    check_content: Callable[[Sequence[DraftTurn], str], None],
) -> tuple[Dialogue, dict[str, Image]]:
    """Turn a request into a dialogue and its pictures by id; each distinct one is decoded once to prove that it can be.

    Decoding takes up to seconds: call it in a thread of its own. ``check_content`` comes before it, and raises where
    there is nothing to go by; it is told the name of the field that the dialogue came in.

    Raises:
        ApiError: 400 for anything malformed, 413 for anything too large.
    """
    turns, field = list(_draft_turns(request)), _field(request)
    _check_sizes(turns, limits, field)
    check_content(turns, field)
    sent: dict[str, SentPicture] = {}
    done = []
    for turn in turns:
        images = [read_payload(url, where, limits) for where, url in turn.images]
        for image in images:
            sent.setdefault(image.id, image)
        done.append(Turn(turn.speaker, turn.text, tuple(image.id for image in images), turn.item_ids))
    _check_pixels(list(sent.values()), limits)
    pictures = {image.id: decode_picture(image, limits) for image in sent.values()}
    return Dialogue(id=request_id, source="request", split="test", turns=tuple(done)), pictures


def most_commas(limits: ServeSettings) -> int:
    """Return how many commas a request within the limits can have: in its texts, between its fields, and some more."""
    fields = 8 * (limits.max_turns + limits.max_images) + limits.max_item_ids
    return limits.max_text_chars + fields + _OTHER_COMMAS


def has_pictures(request: Spoken) -> bool:
    """Say whether reading a request means decoding."""
    return not isinstance(request, RecommendRequest) and any(turn.images for turn in _draft_turns(request))


def fetches(request: Spoken, limits: ServeSettings) -> bool:
    """Say whether reading a request means asking other hosts."""
    urls = (url for turn in _draft_turns(request) for _, url in turn.images)
    return bool(limits.image_hosts) and any(map(is_remote, urls))


def _field(request: Spoken) -> str:
    """Return the name of the field that a dialogue came in."""
    return "messages" if request.turns is None else "turns"


def _draft_turns(request: Spoken) -> Iterator[DraftTurn]:
    for index, turn in enumerate(request.turns or ()):
        where = f"turns[{index}]"
        images = tuple((f"{where}.images[{number}]", url) for number, url in enumerate(turn.images))
        yield DraftTurn(turn.speaker, turn.text, where, images, turn.item_ids)
    for index, message in enumerate(request.messages or ()):
        if message.role in ("user", "assistant"):
            yield _draft_message(message, f"messages[{index}]")


def _draft_message(message: MessageIn, where: str) -> DraftTurn:
    speaker: Speaker = "user" if message.role == "user" else "agent"
    if message.content is None or isinstance(message.content, str):
        return DraftTurn(speaker, message.content or "", where)
    text = "\n".join(part.text for part in message.content if isinstance(part, TextPart))
    images = tuple(
        (f"{where}.content[{number}].image_url.url", part.image_url.url)
        for number, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    )
    return DraftTurn(speaker, text, where, images)


def _check_sizes(turns: list[DraftTurn], limits: ServeSettings, field: str) -> None:
    if len(turns) > limits.max_turns:
        message = f"{len(turns)} turns; at most {limits.max_turns} are taken. Send the last {limits.max_turns}."
        raise ApiError(400, "too_many_turns", message, field)
    named = sum(len(turn.item_ids) for turn in turns)
    if named > limits.max_item_ids:
        message = f"{named} product ids; at most {limits.max_item_ids} are taken. Send those that matter."
        raise ApiError(400, "too_many_item_ids", message, field)
    characters = sum(len(turn.text) + sum(map(len, turn.item_ids)) for turn in turns)
    if characters > limits.max_text_chars:
        message = f"{characters} characters; at most {limits.max_text_chars} are taken. Send fewer or shorter turns."
        raise ApiError(400, "text_too_long", message, field)
    pictures = sum(len(turn.images) for turn in turns)
    if pictures > limits.max_images:
        message = f"{pictures} pictures; at most {limits.max_images} are taken. Send the ones that matter."
        raise ApiError(400, "too_many_images", message, field)
    for turn in turns:
        _check_encodable(turn)


def _check_recognisable(turns: Sequence[DraftTurn], field: str) -> None:
    if not any(turn.speaker == "user" and (turn.text.strip() or turn.images) for turn in turns):
        message = "no customer turn has text or a picture; there is nothing to recognise. Add a user turn."
        raise ApiError(400, "empty_dialogue", message, field)


def _check_answerable(turns: Sequence[DraftTurn], field: str) -> None:
    if not any(turn.text.strip() or turn.images or turn.item_ids for turn in turns):
        message = "no turn has text, a picture or a product; there is nothing to answer. Add a turn."
        raise ApiError(400, "empty_dialogue", message, field)


def _check_encodable(turn: DraftTurn) -> None:
    try:
        "".join((turn.text, *turn.item_ids)).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON's \\u escapes can smuggle in
        message = f"{turn.where}: holds half of a surrogate pair, which is no character. Send valid Unicode."
        raise ApiError(400, "invalid_unicode", message, turn.where) from None


def read_payload(url: str, where: str, limits: ServeSettings) -> SentPicture:
    """Take the picture's file out of a data URL, or fetch it from a trusted host.

    Args:
        url: where it is.
        where: path of its field, for error messages.
        limits: of bytes.

    Raises:
        ApiError: 400, or 413 when it has too many bytes.
    """
    data = fetch_picture(url, where, limits) if is_remote(url) else _decode(_payload(url, where), where, limits)
    return SentPicture(image_id(data), data, where)


def _check_pixels(pictures: Sequence[SentPicture], limits: ServeSettings) -> None:
    """Compare the sizes that the headers tell with what a request may hold together."""
    pixels = 0
    for picture in pictures:
        with _explained(picture.where):
            width, height = image_size(picture.data, _picture_limits(limits))
        pixels += width * height
        if pixels > limits.max_request_megapixels * 10**6:
            message = (
                f"{picture.where}: the pictures up to here have {pixels / 10**6:.1f} megapixels together; at most "
                f"{limits.max_request_megapixels:g} are taken (serve.max_request_megapixels). Scale them down."
            )
            raise ApiError(400, "too_many_pixels", message, picture.where)


def decode_picture(picture: SentPicture, limits: ServeSettings) -> Image:
    """Decode a picture, which proves that it can be.

    Raises:
        ApiError: 400.
    """
    with _explained(picture.where):
        kind, width, height = check_image(picture.data, _picture_limits(limits))
    return Image(picture.id, kind, width, height, picture.data)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what is wrong with a picture into the API's error about its field."""
    try:
        yield
    except BadRecordError as err:
        detail = err.detail.replace("data.limits.", "serve.")
        advice = _ADVICE.get(err.reason, "send another picture")
        raise ApiError(400, err.reason, f"{where}: {detail}; {advice}.", where) from err


def _picture_limits(limits: ServeSettings) -> LimitSettings:
    return LimitSettings(max_image_mb=limits.max_image_mb, max_image_megapixels=limits.max_image_megapixels)


def _payload(url: str, where: str) -> str:
    """Return the base64 part of a data URL."""
    head, comma, payload = url.partition(",")
    kinds = ", ".join(MEDIA_TYPES)
    if not comma or not head.lower().startswith("data:"):
        message = f"{where}: not a data URL. Write data:image/png;base64,… with one of {kinds}."
        raise ApiError(400, "not_a_data_url", message, where)
    media, _, encoding = head[5:].lower().partition(";")
    if media not in MEDIA_TYPES:
        message = f"{where}: media type {media[:40]!r} is not taken. Convert the picture to one of {kinds}."
        raise ApiError(400, "unsupported_media_type", message, where)
    if encoding != "base64":
        message = f"{where}: must be base64. Write data:{media};base64,…"
        raise ApiError(400, "not_base64", message, where)
    return payload


def _decode(payload: str, where: str, limits: ServeSettings) -> bytes:
    size = len(payload) * 3 // 4
    if size > limits.max_image_mb * 2**20 + 2:  # up to two characters of padding
        message = f"{where}: {size / 2**20:.1f} MiB; at most {limits.max_image_mb:g} MiB a picture. Scale it down."
        raise ApiError(413, "image_too_large", message, where)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as err:
        message = f"{where}: not valid base64 ({err}). Encode the file's bytes with the standard alphabet, no spaces."
        raise ApiError(400, "not_base64", message, where) from err
