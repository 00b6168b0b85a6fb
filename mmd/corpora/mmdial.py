"""``mmdial``: text chats in which one utterance was replaced by a picture (Lee et al. 2021).

A record is ``{dialog: [utterance, …], replaced_idx, img_file, img_dataset, dialog_dataset, dialog_file, score, …}``.
Utterances alternate, the user speaks first. The pictures (COCO, Flickr30k) are not part of the download. With a
folder ``images`` the turn ``replaced_idx`` is the picture and its utterance goes to the meta; without the folder the
utterance stays, so that the text is whole, and the meta names picture and turn.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.drafts import Draft, content_id
from mmd.corpora.folder import CorpusFile, FolderReader, files_by_section, image_folder, section_of
from mmd.corpora.json_records import JsonNode, decode_record
from mmd.errors import BadRecordError
from mmd.schema import Dialogue, Speaker

_SPEAKERS: tuple[Speaker, Speaker] = ("user", "agent")
_META = ("dialog_dataset", "dialog_file", "img_dataset", "img_file", "score")


class MmdialReader(FolderReader):
    """Reads JSON lists, or one record a line, in files named train…, dev… and test…."""

    name = "mmdial"
    layout = (
        "train.json, dev.json and/or test.json (a JSON list, or one record a line), and optionally the pictures as "
        "images/IMG_FILE"
    )
    marks = frozenset({"dialog"})

    def files(self) -> list[CorpusFile]:
        """Return the files of all sections."""
        return files_by_section(self._folder)

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a chat into a dialogue.

        Meta: ``section``; ``image_turn`` (0-based); ``replaced_text`` where the picture took its place; and, as far
        as given, ``dialog_dataset``, ``dialog_file``, ``img_dataset``, ``img_file`` and ``score``.
        """
        node = decode_record(record.raw)
        utterances = node.field("dialog").elements()
        drafts = [Draft(_SPEAKERS[i % 2], utterance.text().strip()) for i, utterance in enumerate(utterances)]
        if not drafts:
            raise BadRecordError("empty_dialogue", "dialog: holds no utterance")
        turn = node.field("replaced_idx").index(len(drafts))
        name = node.field("img_file").identifier()
        section = section_of(record.source)
        meta = {"section": section, "image_turn": str(turn)}
        meta |= {key: value.scalar() for key in _META if (value := node.get(key)) is not None}
        images = self._image(name, record.source)
        if images:
            meta["replaced_text"] = drafts[turn].text
            drafts[turn] = Draft(drafts[turn].speaker, "", image_ids=list(images))
        dialogue = Dialogue(
            id=f"{section}-{_record_id(node, turn, name) or content_id(record.raw)}",
            source=self.name,
            split=record.split,
            turns=tuple(draft.turn() for draft in drafts),
            meta=meta,
        )
        return ParsedRecord(dialogue, images)

    def _image(self, name: str, source: str) -> dict[str, ImageSource]:
        folder = image_folder(self._folder, source)
        return {name: ImageSource(path=str(PurePosixPath(folder) / name))} if folder else {}


def _record_id(node: JsonNode, turn: int, image: str) -> str | None:
    """Name a record by the chat it came from, the turn replaced and the picture: together unique in the release."""
    chat = node.get("dialog_file")
    dataset = node.get("dialog_dataset")
    if chat is None:
        return None
    return f"{dataset.scalar() if dataset else 'chat'}/{chat.scalar()}#{turn}={image}"
