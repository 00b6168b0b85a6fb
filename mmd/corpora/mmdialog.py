"""``mmdialog``: conversations with pictures from social media, MMDialog (Feng et al. 2023).

A record is ``{conversation: [turn, …], conversation_id, …}``; a turn is a list of parts, each ``{"__TEXT__": text}``
or ``{"__MEDIA__": key}`` whose picture is ``key.jpg``. Speakers alternate, the user speaks first. The negative
candidates of the test sections are not read: mmd draws its own pools. Without a folder ``images`` no turn carries a
picture, which is no fault: the dialogue's meta names them.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.drafts import Draft, content_id
from mmd.corpora.folder import CorpusFile, FolderReader, files_by_section, image_folder, section_of
from mmd.corpora.json_records import JsonNode, decode_record
from mmd.schema import Dialogue, Speaker

_SPEAKERS: tuple[Speaker, Speaker] = ("user", "agent")


class MmdialogReader(FolderReader):
    """Reads ``SECTION/conversations.json`` with ``SECTION/images``, or files named after their section."""

    name = "mmdialog"
    layout = (
        "train/conversations.json, valid/… and test/… (a JSON list, or one record a line), or the same as train.json, "
        "valid.json and test.json, and optionally the pictures as images/KEY.jpg beside them or at the top"
    )
    marks = frozenset({"conversation"})

    def files(self) -> list[CorpusFile]:
        """Return the files of all sections."""
        return files_by_section(self._folder)

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a conversation into a dialogue.

        Meta: ``section``; without pictures ``absent_images``, JSON, a list of [0-based turn, media key].
        """
        node = decode_record(record.raw)
        section = section_of(record.source)
        turns = node.field("conversation").elements()
        drafts = [_draft(_SPEAKERS[i % 2], turn) for i, turn in enumerate(turns)]
        meta = {"section": section}
        images: dict[str, ImageSource] = {}
        folder = image_folder(self._folder, record.source)
        if folder is not None:
            images = {key: _image(folder, key) for draft in drafts for key in draft.image_ids}
        elif absent := [[i, key] for i, draft in enumerate(drafts) for key in draft.image_ids]:
            meta["absent_images"] = json.dumps(absent)
            for draft in drafts:
                draft.image_ids.clear()
        given = node.first("conversation_id", "dialogue_id", "id")
        identity = given.identifier() if given else content_id(record.raw)
        dialogue = Dialogue(
            f"{section}-{identity}", self.name, record.split, tuple(draft.turn() for draft in drafts), meta=meta
        )
        return ParsedRecord(dialogue, images)


def _image(folder: str, key: str) -> ImageSource:
    return ImageSource(path=str(PurePosixPath(folder) / (key if PurePosixPath(key).suffix else f"{key}.jpg")))


def _draft(speaker: Speaker, turn: JsonNode) -> Draft:
    draft = Draft(speaker, "")
    texts: list[str] = []
    for part in turn.elements():
        text, media = part.get("__TEXT__"), part.get("__MEDIA__")
        if text is None and media is None:
            raise part.wrong_type("an object with __TEXT__ or __MEDIA__")
        if text is not None:
            texts.append(text.text().strip())
        if media is not None:
            keys = media.elements() if isinstance(media.value, list) else [media]
            draft.image_ids.extend(key.identifier() for key in keys)
    draft.text = "\n".join(text for text in texts if text)
    return draft
