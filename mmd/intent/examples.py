"""From dialogues and features to intent examples; training, evaluation and serving all come through here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.features.store import Features
from mmd.intent.types import ImageFacts, IntentExample, Vector
from mmd.schema import Dialogue, Item, OcrLine, Split, ocr_from_row, text_id

TEXT_KINDS = ("last_user", "reply", "shown", "label")
"""What sentence vectors are made of; part of a features artefact's version."""
NO_VECTORS: Mapping[str, Vector] = {}
NO_IMAGES: Mapping[str, ImageFacts] = {}
NO_OCR: Mapping[str, tuple[OcrLine, ...]] = {}
NO_ITEMS: Mapping[str, Item] = {}


def make_example(
    dialogue: Dialogue,
    task: str,
    *,
    images: Mapping[str, ImageFacts],
    items: Mapping[str, Item] = NO_ITEMS,
    text_vectors: Mapping[str, Vector] = NO_VECTORS,
) -> IntentExample:
    """Gather what is known of one dialogue for one task.

    Args:
        dialogue: the dialogue; its label for ``task`` may be missing.
        task: the task asked about.
        images: facts by image id, for at least the pictures that the turns name.
        items: the catalogue; item ids that it lacks are left out, as catalogues change faster than dialogues.
        text_vectors: sentence vectors by :func:`~mmd.schema.text_id` of a turn's text.

    Raises:
        CorpusError: the dialogue names a picture that ``images`` lacks.
    """
    example = IntentExample(
        dialogue_id=dialogue.id,
        task=task,
        label=dialogue.labels.get(task),
        turns=dialogue.turns,
        images=tuple(_facts(dialogue, image_id, images) for image_id in _image_ids(dialogue)),
        items=_items(dialogue, items),
        meta=dialogue.meta,
    )
    return replace(
        example,
        last_user_vector=text_vectors.get(text_id(example.text("last_user"))),
        reply_vector=text_vectors.get(text_id(example.text("reply"))),
        shown_vector=text_vectors.get(text_id(example.shown_text())),
    )


def vector_texts(dialogue: Dialogue, images: Mapping[str, ImageFacts] = NO_IMAGES) -> list[str]:
    """Return the texts of a dialogue that examples want sentence vectors of.

    These are the last user turn, the reply, and the printed text of pictures that were sent without a word; pictures
    that ``images`` lacks have none.
    """
    known = tuple(images[image_id] for image_id in _image_ids(dialogue) if image_id in images)
    example = IntentExample(dialogue.id, "", None, dialogue.turns, known)
    return [text for text in (example.text("last_user"), example.text("reply"), example.shown_text()) if text.strip()]


def wanted_texts(corpus: Corpus, ocr: Mapping[str, tuple[OcrLine, ...]] = NO_OCR) -> dict[str, str]:
    """Return text id → text of all that sentence vectors are wanted of: dialogues' texts and labels' names.

    Args:
        corpus: whose texts are wanted.
        ocr: image id → lines, of pictures that the corpus brought none for.
    """
    rows = corpus.image_table(["id", "width", "height", "ocr"]).to_pylist()
    images = {
        row["id"]: ImageFacts(row["id"], row["width"], row["height"], _lines(row["id"], row["ocr"], ocr))
        for row in rows
    }
    texts = [text for dialogue in corpus.dialogues() for text in vector_texts(dialogue, images)]
    names = [label for labels in corpus.tasks.values() for label in labels]
    return {text_id(text): text for text in (*texts, *names)}


def label_vectors(features: Features, labels: Sequence[str]) -> dict[str, Vector]:
    """Return the sentence vectors of labels' names, as far as featurize made them."""
    found = {label: features.text_vectors.get(text_id(label)) for label in labels}
    return {label: vector for label, vector in found.items() if vector is not None}


def load_examples(corpus: Corpus, features: Features | None, task: str, split: Split) -> list[IntentExample]:
    """Return the labelled examples of one task and split, in the corpus's order.

    Args:
        corpus: where dialogues, pictures and items come from.
        features: OCR lines and vectors; without them examples carry only the OCR given with the corpus.
        task: one of ``corpus.tasks``.
        split: ``train`` or ``test``.

    Raises:
        CorpusError: the corpus does not have the task.
    """
    require_task(corpus, task)
    dialogues = [d for d in corpus.dialogues(split) if task in d.labels]
    images = image_facts(corpus, features)
    items = corpus.items()
    vectors = features.text_vectors if features else NO_VECTORS
    return [make_example(d, task, images=images, items=items, text_vectors=vectors) for d in dialogues]


def require_task(corpus: Corpus, task: str) -> None:
    """Raise unless the corpus has the task.

    Raises:
        CorpusError: naming the tasks that there are.
    """
    if task not in corpus.tasks:
        have = ", ".join(corpus.tasks) or "none"
        raise CorpusError(f"task {task!r}: not in this corpus; it has {have}.")


def image_facts(corpus: Corpus, features: Features | None) -> dict[str, ImageFacts]:
    """Return the facts of every picture of the corpus by image id; OCR of the features goes before the corpus's."""
    rows = corpus.image_table(["id", "width", "height", "ocr"]).to_pylist()
    return {
        row["id"]: ImageFacts(
            image_id=row["id"],
            width=row["width"],
            height=row["height"],
            ocr=_lines(row["id"], row["ocr"], features.ocr if features else NO_OCR),
            vector=features.image_vectors.get(row["id"]) if features else None,
        )
        for row in rows
    }


def with_pictures(examples: Sequence[IntentExample], corpus: Corpus) -> list[IntentExample]:
    """Return the examples with their pictures' encoded bytes, read from the corpus's shards as they stream by.

    Only for models that look at pixels: the bytes of all these pictures are then in memory.

    Raises:
        ArtifactError: the corpus lacks one of the pictures.
    """
    wanted = {image.image_id for example in examples for image in example.images if image.data is None}
    if not wanted:
        return list(examples)
    data = {image.id: image.data for image in corpus.images(wanted)}
    return [replace(e, images=tuple(replace(i, data=data.get(i.image_id, i.data)) for i in e.images)) for e in examples]


def _lines(
    image_id: str, given: list[dict[str, object]] | None, recognised: Mapping[str, tuple[OcrLine, ...]]
) -> tuple[OcrLine, ...]:
    """Return a picture's lines; recognised ones go before those given with the corpus."""
    lines = recognised.get(image_id)
    if lines is not None:
        return lines
    return ocr_from_row(given) if given else ()


def _image_ids(dialogue: Dialogue) -> Iterable[str]:
    return (image_id for turn in dialogue.turns for image_id in turn.image_ids)


def _facts(dialogue: Dialogue, image_id: str, images: Mapping[str, ImageFacts]) -> ImageFacts:
    try:
        return images[image_id]
    except KeyError:
        raise CorpusError(
            f"dialogue {dialogue.id}: its picture {image_id} is not in the image table; run ingest again."
        ) from None


def _items(dialogue: Dialogue, items: Mapping[str, Item]) -> tuple[Item, ...]:
    ids = dict.fromkeys(item_id for turn in dialogue.turns for item_id in turn.item_ids)
    return tuple(items[item_id] for item_id in ids if item_id in items)
