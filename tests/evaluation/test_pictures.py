"""What pictures are worth to a model that looks at them: worked out by hand on three red and blue pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from PIL import Image

from mmd.evaluation.metrics import Fraction
from mmd.evaluation.pictures import blanked, only_a_picture, picture_effect
from mmd.intent.types import ImageFacts, IntentExample, Probabilities
from mmd.schema import OcrLine, Turn

LABELS = ("red", "blue", "grey")


class Eyes:
    """Names the strongest channel of the picture's first pixel; grey where none is."""

    task = "colour"
    labels = LABELS
    needs_pictures = True

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        return [Probabilities(LABELS, tuple(float(label == self.look(e)) for label in LABELS)) for e in examples]

    def predict_hinted(self, examples: Sequence[IntentExample], hints: Sequence[str]) -> list[Probabilities]:
        assert len(hints) == len(examples)
        return self.predict(examples)

    @staticmethod
    def look(example: IntentExample) -> str:
        data = example.images[0].data
        assert data is not None
        with Image.open(io.BytesIO(data)) as picture:
            red, _, blue = picture.convert("RGB").resize((1, 1)).tobytes()
        return "red" if red > blue else "blue" if blue > red else "grey"


class Blind(Eyes):
    needs_pictures = False


def example(colour: str, label: str, words: str = "") -> IntentExample:
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(sink, "PNG")
    ocr = (OcrLine("50 % off", 0.9, (0.0, 0.0, 9.0, 9.0)),)
    return IntentExample(
        colour, "colour", label, (Turn("user", words, ("p",)),), (ImageFacts("p", 40, 30, ocr, None, sink.getvalue()),)
    )


ASKED = [example("red", "red"), example("blue", "blue"), example("red", "blue"), example("red", "red", "what is it")]


def test_accuracy_falls_to_that_of_blank_pictures():
    """Without the one that has words: right on 2 of 3 as sent, on none when all is grey; blue is commonest, 2 of 3."""
    effect = picture_effect(Eyes(), ASKED, Eyes().predict(ASKED))
    assert effect is not None
    assert (effect.seen, effect.blank) == (Fraction(2, 3), Fraction(0, 3))
    assert (effect.chance, effect.commonest) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_a_model_that_sees_no_pictures_is_not_asked():
    assert picture_effect(Blind(), ASKED, Blind().predict(ASKED)) is None


def test_without_pictures_alone_there_is_nothing_to_ask():
    assert picture_effect(Eyes(), ASKED[3:], Eyes().predict(ASKED[3:])) is None


def test_a_link_beside_the_picture_is_no_word():
    assert only_a_picture(example("red", "red", "<http>"))
    assert not only_a_picture(example("red", "red", "is it red"))


def test_a_blank_picture_keeps_its_size_and_nothing_else():
    [image] = blanked(ASKED[0]).images
    assert (image.image_id, image.width, image.height, image.ocr, image.vector) == ("p", 40, 30, (), None)
    with Image.open(io.BytesIO(image.data or b"")) as picture:
        assert picture.size == (40, 30)
        assert picture.getcolors() == [(1200, (127, 127, 127))]
