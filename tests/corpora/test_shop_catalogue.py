"""Catalogues of the shop: drawn ones, and CSV files with pictures, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmd.corpora.settings import ShopSettings
from mmd.corpora.shop import ShopReader
from mmd.corpora.shop.catalogue import build_catalogue, goods
from mmd.corpora.shop.drawing import photograph
from mmd.errors import BadRecordError, CorpusError

HEADER = "id,category,baseColour,Title\n"
ROWS = "a1,Mugs,Blue,Blue mug of Ann\na2,Mugs,Red,Red mug of Ann\nb7,Shirts,Green,Green shirt\n"


def write_catalogue(folder: Path, text: str, *, pictures: tuple[str, ...] = ("a1", "a2", "b7")) -> ShopSettings:
    (folder / "images").mkdir()
    for number, name in enumerate(pictures):
        Image.new("RGB", (6, 8), (40 * number, 90, 120)).save(folder / "images" / f"{name}.jpg")
    (folder / "products.csv").write_text(text, encoding="utf-8")
    return ShopSettings(dialogues=80, catalogue_csv=str(folder / "products.csv"), image_side_px=48)


@pytest.mark.parametrize("count", [10, 37, 120])
def test_a_drawn_catalogue_has_the_asked_size_and_distinct_ids(count: int):
    catalogue = build_catalogue(ShopSettings(items=count), 0)
    assert len(catalogue) == count
    assert len(catalogue.by_id) == count


def test_drawn_titles_say_what_the_product_is():
    for product in build_catalogue(ShopSettings(), 1).products:
        assert product.attributes["brand"] in product.title
        assert product.colour in product.title
        assert product.category in product.title
        assert goods().chinese[product.colour] in product.title_zh


def test_siblings_differ_only_in_colour():
    catalogue = build_catalogue(ShopSettings(), 0)
    product = catalogue.products[0]
    siblings = catalogue.siblings(product)
    assert siblings
    for other in siblings:
        assert {k for k in product.attributes if product.attributes[k] != other.attributes[k]} <= {"colour", "stock"}


def test_products_look_different():
    catalogue = build_catalogue(ShopSettings(items=28), 0)
    assert len({photograph(product, 64).tobytes() for product in catalogue.products}) == 28


def test_damage_and_views_change_the_picture():
    product = build_catalogue(ShopSettings(), 0).products[0]
    pictures = [photograph(product, 64, 1, damage).tobytes() for damage in ("", "crack", "leak", "fade")]
    pictures.append(photograph(product, 64).tobytes())
    assert len(set(pictures)) == 5


def test_a_csv_becomes_the_catalogue(tmp_path: Path):
    settings = write_catalogue(tmp_path, HEADER + ROWS)
    reader = ShopReader(settings, 0)
    items = {entry.item.id: entry for entry in reader.items()}
    assert set(items) == {"a1", "a2", "b7"}
    assert items["a1"].item.title == "Blue mug of Ann"
    assert items["a1"].item.attributes["colour"] == "blue"
    assert items["a1"].item.attributes["category"] == "Mugs"
    assert items["b7"].images["b7.jpg"].data == (tmp_path / "images" / "b7.jpg").read_bytes()


def test_conversations_over_a_csv_are_about_its_products(tmp_path: Path):
    settings = write_catalogue(tmp_path, HEADER + ROWS)
    reader = ShopReader(settings, 0)
    records = [reader.parse(record) for part in reader.plan() for record in reader.read(part)]
    mentioned = {item for record in records for turn in record.dialogue.turns for item in turn.item_ids}
    assert mentioned == {"a1", "a2", "b7"}
    assert len(records) == 80


def test_a_capacity_is_only_asked_where_something_has_one(tmp_path: Path):
    text = HEADER + "x1,Shirts,Blue,Blue shirt\nx2,Shirts,Red,Red shirt\n"
    reader = ShopReader(write_catalogue(tmp_path, text, pictures=("x1", "x2")), 0)
    assert "ask_capacity" not in reader.tasks()["dialogue_intent"]
    assert "ask_size" in reader.tasks()["dialogue_intent"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sku,Title\na1,Mug\na2,Cup\n", "no 'id' column; it has sku, Title"),
        (
            "id,label\na1,Mug\na2,Cup\n",
            "no title column; it has id, label. Name the column of product names 'title' or 'name'.",
        ),
        (HEADER + ROWS + "a2,Mugs,Red,Again\n", "row 5: id 'a2' was row 3's already"),
        (HEADER + "../a1,Mugs,Blue,Mug\na2,Mugs,Red,Mug\n", "row 2: id '../a1'"),
        (HEADER + ROWS + "c1,Mugs,Red,Mug\n", "1 of 4 pictures are missing, the first: c1.jpg"),
        (HEADER, "0 products"),
    ],
)
def test_a_bad_csv_is_refused_with_what_where_and_the_way_out(tmp_path: Path, text: str, words: str):
    reader = ShopReader(write_catalogue(tmp_path, text), 0)
    with pytest.raises(CorpusError) as caught:
        reader.plan()
    assert words in str(caught.value)


def test_a_missing_csv_or_picture_folder_is_refused(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"data\.shop\.catalogue_csv"):
        ShopReader(ShopSettings(catalogue_csv=str(tmp_path / "no.csv")), 0).plan()
    (tmp_path / "products.csv").write_text(HEADER + ROWS, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"data\.shop\.catalogue_images"):
        ShopReader(ShopSettings(catalogue_csv=str(tmp_path / "products.csv")), 0).plan()


def test_a_broken_picture_is_a_bad_record_not_a_crash(tmp_path: Path):
    settings = write_catalogue(tmp_path, HEADER + ROWS)
    (tmp_path / "images" / "a1.jpg").write_bytes(b"no picture")
    product = build_catalogue(settings, 0).by_id["a1"]
    with pytest.raises(BadRecordError) as caught:
        photograph(product, 48, 1)
    assert caught.value.reason == "not_an_image"


@pytest.mark.real_data
def test_the_fashion_catalogue_serves_as_shop(real_data: Path):
    settings = ShopSettings(dialogues=40, catalogue_csv=str(real_data / "fashion" / "products.csv"))
    reader = ShopReader(settings, 0)
    records = [reader.parse(record) for part in reader.plan() for record in reader.read(part)]
    assert len(records) == 40
    assert len(reader.catalogue) == 6000
