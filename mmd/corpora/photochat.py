"""``photochat``: human chats in which one photo is shared, PhotoChat (Zang et al. 2021).

A record is ``{dialogue: [{message, share_photo, user_id}], dialogue_id, photo_description, photo_url, photo_id}``.
The chats are between peers: whoever speaks first is the user, the other the agent. Photos are not part of the
download. With a folder ``images`` the turn that shares the photo carries it, and a photo that is not there is a fault
of that record; without the folder no turn carries any, which is none: the dialogue's meta names photo and turn.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.drafts import Draft
from mmd.corpora.folder import CorpusFile, FolderReader, files_by_section, image_folder, section_of
from mmd.corpora.json_records import JsonNode, decode_record
from mmd.errors import BadRecordError
from mmd.schema import Dialogue, Speaker


class PhotochatReader(FolderReader):
    """Reads JSON lists of conversations, in files or folders named train…, dev… and test…."""

    name = "photochat"
    layout = (
        "JSON lists in files or folders named train…, dev… and test… (train/train_0.json, say), and optionally the "
        "photos as images/PHOTO_ID.jpg"
    )
    marks = frozenset({"dialogue"})

    def files(self) -> list[CorpusFile]:
        """Return the files of all sections."""
        return files_by_section(self._folder)

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a chat into a dialogue.

        Meta: ``section``; ``photo_id``, ``photo_url`` and ``photo_description`` as far as given; ``photo_turn``, the
        0-based turns in which the photo was shared, separated by commas.
        """
        node = decode_record(record.raw)
        messages = node.field("dialogue").elements()
        drafts = _drafts(messages)
        shared = [i for i, message in enumerate(messages) if _shares_photo(message)]
        section = section_of(record.source)
        images = self._photo(node, record.source) if shared else {}
        for i in shared:
            drafts[i].image_ids.extend(images)
        dialogue = Dialogue(
            id=f"{section}-{node.field('dialogue_id').identifier()}",
            source=self.name,
            split=record.split,
            turns=tuple(draft.turn() for draft in drafts),
            meta={"section": section, **_photo_meta(node, shared)},
        )
        return ParsedRecord(dialogue, images)

    def _photo(self, node: JsonNode, source: str) -> dict[str, ImageSource]:
        folder = image_folder(self._folder, source)
        if folder is None:
            return {}
        photo = node.field("photo_id").identifier()
        description = node.get("photo_description")
        path = PurePosixPath(folder) / (photo if PurePosixPath(photo).suffix else f"{photo}.jpg")
        return {photo: ImageSource(path=str(path), description=description.text() if description else None)}


def _drafts(messages: list[JsonNode]) -> list[Draft]:
    speakers: dict[str, Speaker] = {}
    drafts: list[Draft] = []
    for message in messages:
        sender = message.field("user_id")
        known = sender.identifier()
        if known not in speakers:
            if len(speakers) == 2:
                raise BadRecordError("unknown_speaker", f"{sender.path}: {known} is a third party of a chat of two")
            speakers[known] = "agent" if speakers else "user"
        text = message.get("message")
        drafts.append(Draft(speakers[known], text.text().strip() if text else ""))
    return drafts


def _shares_photo(message: JsonNode) -> bool:
    shares = message.get("share_photo")
    if shares is None:
        return False
    if not isinstance(shares.value, bool):
        raise shares.wrong_type("true or false")
    return shares.value


def _photo_meta(node: JsonNode, shared: list[int]) -> dict[str, str]:
    keys = ("photo_id", "photo_url", "photo_description")
    meta = {key: value.scalar() for key in keys if (value := node.get(key)) is not None}
    return meta | ({"photo_turn": ",".join(map(str, shared))} if shared else {})
