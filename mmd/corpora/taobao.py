"""``taobao``: the WWW 2025 multimodal intent challenge.

A record is ``{id, instruction, input, output, image: [file, …]}``. The instruction tells the task, carries the
conversation and lists the labels; ``output`` is the label.

- ``image_scene``: the instruction starts ``Picture 1: <image>``; the dialogue is one user turn with the picture(s).
- ``dialogue_intent``: turns stand between two markers, ``用户:`` is the user and ``客服:`` the agent; a line without
  either continues the turn before. ``<image>`` marks where the next picture was sent and is taken out of the text;
  ``<http>``, a link, stays as a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import PurePosixPath

from mmd.corpora.base import ImageSource, ParsedRecord, RawRecord
from mmd.corpora.drafts import Draft, drop_empty, place_images
from mmd.corpora.folder import CorpusFile, FolderReader
from mmd.corpora.json_records import JsonNode, decode_record
from mmd.corpora.ocr_lines import OCR_FILE, read_ocr
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import Dialogue, OcrLine, Speaker

IMAGE_SCENE = "image_scene"
DIALOGUE_INTENT = "dialogue_intent"
START = "<用户与客服的对话 START>"
END = "<用户与客服的对话 END>"
_SPEAKERS: Mapping[str, Speaker] = {"用户": "user", "客服": "agent"}
_SPEAKER = re.compile(r"\s*(用户|客服)\s*[:：]")
_DECODER = json.JSONDecoder()


class TaobaoReader(FolderReader):
    """Reads ``train.json`` (split train) and ``dev.json`` (split test), pictures and, where given, their OCR."""

    name = "taobao"
    layout = "train.json and/or dev.json, a folder images/, and optionally ocr.jsonl"
    marks = frozenset({"instruction"})

    def files(self) -> list[CorpusFile]:
        """Return ``train.json`` and ``dev.json``, as far as they exist.

        Raises:
            CorpusError: the picture folder is missing; without it every record would be a bad one.
        """
        if not (self._folder / "images").is_dir():
            raise CorpusError(f"{self.root}/images: does not exist. The taobao reader expects {self.layout}.")
        return self._named({"train.json": "train", "dev.json": "test"})

    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Return both tasks' labels as the prompts list them: of the training records, or of all without any.

        Prompts that differ are united, in the order in which labels first appear.
        """
        files = self.existing_files()
        train = [file for file in files if file.split == "train"]
        labels: dict[str, dict[str, None]] = {}
        for instruction in self._instructions(train or files):
            task = task_of(instruction)
            if task:
                labels.setdefault(task, {}).update(dict.fromkeys(prompt_labels(instruction)))
        return {task: tuple(labels[task]) for task in (IMAGE_SCENE, DIALOGUE_INTENT) if task in labels}

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a challenge record into a dialogue with one label.

        Meta counts what was tidied: ``empty_agent_turns``, ``empty_user_turns`` (dropped), ``images_unplaced`` (listed
        without a marker, now at the last user turn), ``image_markers_unmatched`` (markers without a picture).
        """
        node = decode_record(record.raw)
        instruction = node.field("instruction").text()
        names = _image_names(node)
        task = task_of(instruction)
        if task is None:
            raise BadRecordError(
                "missing_field", f"instruction: neither starts with a picture nor holds a conversation after {START!r}"
            )
        drafts, meta = _scene(node, names) if task == IMAGE_SCENE else _conversation(instruction, names)
        dialogue = Dialogue(
            id=node.field("id").identifier(),
            source=self.name,
            split=record.split,
            turns=tuple(draft.turn() for draft in drafts),
            labels={task: node.field("output").text()},
            meta=meta,
        )
        return ParsedRecord(dialogue, {name: self._image(name) for name in names})

    def _image(self, name: str) -> ImageSource:
        return ImageSource(path=str(PurePosixPath("images") / name), ocr=self._ocr.get(name))

    @cached_property
    def _ocr(self) -> Mapping[str, tuple[OcrLine, ...]]:
        return read_ocr(self._folder / OCR_FILE)

    def _instructions(self, files: list[CorpusFile]) -> Iterator[str]:
        for file in files:
            for cut in self._open(file.source).cuts():
                try:
                    yield decode_record(cut.raw).field("instruction").text()
                except BadRecordError:
                    continue  # ingest reports it


def task_of(instruction: str) -> str | None:
    """Return the task that an instruction sets; None if it sets neither."""
    if START in instruction:
        return DIALOGUE_INTENT
    return IMAGE_SCENE if instruction.lstrip().startswith("Picture") else None


def prompt_labels(instruction: str) -> tuple[str, ...]:
    """Return the labels that a prompt offers: the last JSON list of strings in it; empty if there is none."""
    at = instruction.rfind('["')
    if at < 0:
        return ()
    try:
        found, _ = _DECODER.raw_decode(instruction, at)
    except (ValueError, RecursionError):
        return ()
    return tuple(label for label in found if isinstance(label, str))


def parse_turns(conversation: str) -> list[Draft]:
    """Split a conversation into turns, one a speaker prefix; lines without one continue the turn before.

    Raises:
        BadRecordError: ``unknown_speaker``, when text comes before the first known speaker.
    """
    drafts: list[Draft] = []
    for line in conversation.split("\n"):
        match = _SPEAKER.match(line)
        if match:
            drafts.append(Draft(_SPEAKERS[match.group(1)], line[match.end() :].strip()))
        elif drafts:
            drafts[-1].text = f"{drafts[-1].text}\n{line.strip()}".strip()
        elif line.strip():
            raise BadRecordError(
                "unknown_speaker", f"instruction: the conversation starts {line[:30]!r}, needs 用户: or 客服:"
            )
    return drafts


def _image_names(node: JsonNode) -> list[str]:
    listed = node.get("image")
    return [name.text() for name in listed.elements()] if listed else []


def _scene(node: JsonNode, names: list[str]) -> tuple[list[Draft], dict[str, str]]:
    if not names:
        raise BadRecordError("image_missing", "image: no file is listed, and the task is to classify a picture")
    text = node.get("input")
    return [Draft("user", text.text().strip() if text else "", image_ids=list(names))], {}


def _conversation(instruction: str, names: list[str]) -> tuple[list[Draft], dict[str, str]]:
    body, end, _ = instruction.partition(START)[2].rpartition(END)
    if not end:
        raise BadRecordError("missing_field", f"instruction: the conversation is not closed by {END!r}")
    drafts = parse_turns(body)
    placed = place_images(drafts, names)
    kept, dropped = drop_empty(drafts)
    return kept, placed | dropped
