"""Does the picture matter? The same questions with the pictures, and with blank ones in their place.

Asked of examples that have nothing but a picture to go by: whoever answers them rightly has looked at it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmd.evaluation.metrics import Fraction
from mmd.intent.types import ImageFacts, IntentExample, Probabilities, PromptedClassifier, has_words

_GREY = (127, 127, 127)


@dataclass(frozen=True, slots=True)
class PictureEffect:
    """Accuracy of an MLLM on examples that have only a picture.

    ``chance`` is 1 / number of labels; ``commonest`` the share of the commonest true label, which blind guessing can
    reach.
    """

    seen: Fraction
    blank: Fraction
    chance: float
    commonest: float


def only_a_picture(example: IntentExample) -> bool:
    """Say whether the customer sent a picture and no words."""
    return bool(example.images) and not has_words(example.text("user"))


def blanked(example: IntentExample) -> IntentExample:
    """Return the example with blank pictures of the same sizes, nothing printed on them."""
    return replace(example, images=tuple(_blank(image) for image in example.images))


def _blank(image: ImageFacts) -> ImageFacts:
    from PIL import Image  # noqa: PLC0415 (only where a model looks at pixels)

    sink = io.BytesIO()
    Image.new("RGB", (max(1, image.width), max(1, image.height)), _GREY).save(sink, "PNG")
    return ImageFacts(image.image_id, image.width, image.height, data=sink.getvalue())


def picture_effect(
    mllm: PromptedClassifier, examples: Sequence[IntentExample], seen: Sequence[Probabilities]
) -> PictureEffect | None:
    """Ask an MLLM again without the pictures; None if it sees none, or no example has only a picture.

    Args:
        mllm: one task's.
        examples: labelled ones of that task, with their pictures' bytes.
        seen: what it said of each with the pictures.
    """
    pairs = [(e, p) for e, p in zip(examples, seen, strict=True) if only_a_picture(e)]
    if not mllm.needs_pictures or not pairs:
        return None
    asked, golds = [e for e, _ in pairs], [e.label for e, _ in pairs]
    return PictureEffect(
        seen=_accuracy(golds, [p for _, p in pairs]),
        blank=_accuracy(golds, mllm.predict([blanked(e) for e in asked])),
        chance=1.0 / len(mllm.labels),
        commonest=max(golds.count(label) for label in set(golds)) / len(golds),
    )


def _accuracy(golds: Sequence[str | None], found: Sequence[Probabilities]) -> Fraction:
    return Fraction(sum(p.best[0] == gold for p, gold in zip(found, golds, strict=True)), len(golds))
