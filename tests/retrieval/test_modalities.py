"""The registry of modalities: a fourth one is one class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from mmd.errors import ConfigError
from mmd.retrieval.facts import Facts
from mmd.retrieval.modalities import MODALITIES, Modality, modality, register
from mmd.retrieval.pools import make_pools
from mmd.retrieval.samples import find_samples
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.types import Response
from mmd.schema import Dialogue, Item, Turn

CARD = Item("7", " Red mug ", {"size": "9 cm", "colour": "red", "room": ""}, ("p1", "p2"))


class Links:
    """A fourth modality: pages that the agent links to."""

    name = "link"
    precedence = 30
    from_catalogue = False

    def of_turn(self, turn: Turn, dialogue: Dialogue, index: int, facts: Facts) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        return tuple(word for word in turn.text.split() if word.startswith("https://"))

    def response(self, key: str, facts: Facts) -> Response:  # noqa: ARG002 (the protocol's)
        return Response(f"link:{key}", "link", key, key.removeprefix("https://"))

    def candidates(self, facts: Facts) -> Iterable[str]:  # noqa: ARG002 (the protocol's)
        return ("https://home",)


@pytest.fixture
def links() -> Iterator[Modality]:
    register(Links())
    yield MODALITIES["link"]
    del MODALITIES["link"]


def test_a_fourth_modality_is_one_class(links: Modality):
    settings = SampleSettings(modalities=("text", "link"))
    facts = Facts(settings, {}, {}, {})
    dialogues = [
        Dialogue(f"d{i}", "t", "test", (Turn("user", "help"), Turn("agent", f"see https://page{i}"))) for i in range(3)
    ]
    given = find_samples(dialogues, facts, settings)
    assert given.modalities == ("link",)
    assert set(given.responses) == {"link:https://home", *(f"link:https://page{i}" for i in range(3))}
    pool = make_pools(given.samples, given, "union", 3, seed=0)[0]
    assert pool.candidates == tuple(f"link:https://page{i}" for i in range(3))


def test_a_taken_name_is_refused(links: Modality):
    with pytest.raises(ConfigError, match=r"link.*registered already"):
        register(Links())


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'video'.*choose from text, image, product"):
        modality("video")


def test_a_product_card_is_title_attributes_and_first_picture():
    facts = Facts(SampleSettings(), {"7": CARD}, {}, {})
    card = modality("product").response("7", facts)
    assert card == Response("product:7", "product", "Red mug", "Red mug. colour: red, size: 9 cm", "p1")


def test_only_products_come_from_a_catalogue():
    assert [name for name, kind in MODALITIES.items() if kind.from_catalogue] == ["product"]
