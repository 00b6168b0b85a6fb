"""What the shop sells: products drawn from ``goods.yaml``, or the rows of any CSV with pictures.

A product is described by words (English keys and values, Chinese beside them), by which gold answers are decided,
and by what is needed to draw it. The catalogue is the only thing held in memory; dialogues are not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from mmd.corpora.product_csv import ProductTable, read_products
from mmd.corpora.settings import ShopSettings
from mmd.corpora.shop.chance import pick, stream
from mmd.errors import CorpusError

TASTES = 8
"""Latent groups of items that go together; they drive co-purchases and recommendations and are never shown."""
_FAMILY_SIZE = 3  # products that differ only in colour
_LINE_SIZE = 2  # versions that differ in material and capacity
_CATEGORY_COLUMNS = ("articletype", "category", "type", "subcategory")
_COLOUR_COLUMNS = ("basecolour", "basecolor", "colour", "color")


@dataclass(frozen=True)
class Kind:
    """A category of goods as ``goods.yaml`` describes it; ``price`` is the range in the shop's currency."""

    name: str
    en: str
    zh: str
    room: str
    traits: frozenset[str]
    materials: tuple[str, ...]
    sizes: tuple[str, ...]
    capacities: tuple[str, ...]
    price: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Product:
    """One product; compared and hashed by identity, as a process builds its catalogue once.

    ``attributes`` hold everything that is said of it, as strings: category, colour, material, size, price …
    ``kind`` lends what the words do not say: traits and worn sizes. ``look`` selects among drawing variants.
    ``picture`` is the picture file of a CSV catalogue; None for drawn products.
    """

    id: str
    title: str
    title_zh: str
    kind: str
    attributes: Mapping[str, str]
    family: str
    taste: int
    look: int = 0
    in_stock: bool = True
    picture: str | None = None

    @property
    def category(self) -> str:
        """The category's English name."""
        return self.attributes["category"]

    @property
    def colour(self) -> str:
        """The colour's English name."""
        return self.attributes["colour"]

    @property
    def price(self) -> int:
        """Price in whole units of the shop's currency."""
        return int(self.attributes["price"])


@dataclass(frozen=True)
class Goods:
    """The contents of ``goods.yaml``: what there is to sell, and its words in Chinese."""

    kinds: Mapping[str, Kind]
    colours: Mapping[str, tuple[int, int, int]]
    patterns: tuple[str, ...]
    brands: tuple[str, ...]
    csv_kinds: Mapping[str, tuple[str, ...]]
    chinese: Mapping[str, str] = field(default_factory=dict)

    def word(self, value: str, language: str) -> str:
        """Return an attribute's value in ``language``; values that the shop has no Chinese for stay as they are."""
        return self.chinese.get(value, value) if language == "zh" else value


@lru_cache(maxsize=1)
def goods() -> Goods:
    """Read ``goods.yaml``."""
    raw = yaml.safe_load(resources.files(__package__).joinpath("goods.yaml").read_text(encoding="utf-8"))
    chinese = {name: entry["zh"] for part in ("colours", "patterns", "materials") for name, entry in raw[part].items()}
    kinds = {name: _kind(name, entry) for name, entry in raw["categories"].items()}
    return Goods(
        kinds=kinds,
        colours={name: tuple(entry["rgb"]) for name, entry in raw["colours"].items()},
        patterns=tuple(raw["patterns"]),
        brands=tuple(raw["brands"]),
        csv_kinds={name: tuple(words) for name, words in raw["csv_kinds"].items()},
        chinese=chinese | {kind.en: kind.zh for kind in kinds.values()},
    )


def _kind(name: str, entry: Mapping[str, Any]) -> Kind:
    return Kind(
        name=name,
        en=entry.get("en", name),
        zh=entry["zh"],
        room=entry["room"],
        traits=frozenset(entry["traits"]),
        materials=tuple(entry["materials"]),
        sizes=tuple(entry["sizes"]),
        capacities=tuple(entry.get("capacities", ())),
        price=cast("tuple[int, int]", tuple(entry["price"])),
    )


class Catalogue:
    """The products, with the look-ups that dialogues need.

    Args:
        products: at least two products with distinct ids.
        seed: seed of the latent structure (co-purchases).
    """

    def __init__(self, products: Sequence[Product], seed: int) -> None:
        self.products = tuple(products)
        self.seed = seed
        self.by_id = {product.id: product for product in self.products}

    def __len__(self) -> int:
        """Return the number of products."""
        return len(self.products)

    @cached_property
    def by_category(self) -> Mapping[str, tuple[Product, ...]]:
        """Products by category, in catalogue order."""
        return _grouped((product.category, product) for product in self.products)

    @cached_property
    def by_family(self) -> Mapping[str, tuple[Product, ...]]:
        """Products that differ only in colour (in a CSV: of one category and gender), by family."""
        return _grouped((product.family, product) for product in self.products)

    @cached_property
    def by_trait(self) -> Mapping[str, tuple[Product, ...]]:
        """Products by trait of their kind (``holds``, ``dyed``, ``fits``, ``washed``, ``used``) and ``any``."""
        kinds = goods().kinds
        pairs = ((trait, p) for p in self.products for trait in sorted(kinds[p.kind].traits | {"any"}))
        return _grouped(pairs)

    @cached_property
    def sold_out(self) -> tuple[Product, ...]:
        """Products that are not in stock."""
        return tuple(product for product in self.products if not product.in_stock)

    @cached_property
    def _by_taste(self) -> Mapping[int, tuple[Product, ...]]:
        return _grouped((product.taste, product) for product in self.products)

    def siblings(self, product: Product) -> tuple[Product, ...]:
        """Return what the product's family offers in other colours."""
        return tuple(p for p in self.by_family[product.family] if p.colour != product.colour)

    def versions(self, product: Product) -> tuple[Product, ...]:
        """Return other products of the category that differ from it in material, size or capacity."""
        same = self.by_category[product.category]
        keys = ("material", "capacity", "size")
        mine = tuple(product.attributes.get(key) for key in keys)
        return tuple(p for p in same if tuple(p.attributes.get(key) for key in keys) != mine)

    def bought_with(self, product: Product, count: int = 4) -> tuple[Product, ...]:
        """Return the products bought together with this one: its taste's, from other families, a fixed choice.

        One in five of them is of another taste, so that the structure must be learnt rather than read off.
        """
        rng = stream(self.seed, "bought", product.id)
        chosen: dict[str, Product] = {}
        for _ in range(count * 4):
            pool = self.products if rng.random() < 0.2 else self._by_taste[product.taste]
            other = pool[rng.randrange(len(pool))]
            if other.family != product.family:
                chosen[other.id] = other
            if len(chosen) == count:
                break
        return tuple(chosen.values())


def _grouped(pairs: Iterable[tuple[Any, Product]]) -> dict[Any, tuple[Product, ...]]:
    groups: dict[Any, list[Product]] = defaultdict(list)
    for key, product in pairs:
        groups[key].append(product)
    return {key: tuple(group) for key, group in groups.items()}


@lru_cache(maxsize=4)
def build_catalogue(settings: ShopSettings, seed: int) -> Catalogue:
    """Draw the catalogue, or read it from ``settings.catalogue_csv``.

    Raises:
        CorpusError: the CSV is missing, has no id or title column, repeats an id, or lacks pictures.
    """
    if settings.catalogue_csv is None:
        return Catalogue(list(_drawn_products(settings.items, seed)), seed)
    path = Path(settings.catalogue_csv)
    images = Path(settings.catalogue_images) if settings.catalogue_images else path.parent / "images"
    return Catalogue(_read_csv(path, images, seed), seed)


def _drawn_products(count: int, seed: int) -> Iterator[Product]:
    """Yield products line by line: a line has versions, a version (family) comes in several colours.

    Categories take turns, so that even a small catalogue has versions and colours to ask for.
    """
    kinds = list(goods().kinds.values())
    made = 0
    line = 0
    while made < count:
        kind = kinds[line % len(kinds)]
        for product in _line(kind, line, seed):
            if made == count:
                return
            yield replace(product, id=f"p{made:05d}")
            made += 1
        line += 1


def _line(kind: Kind, line: int, seed: int) -> Iterator[Product]:
    rng = stream(seed, "line", line)
    brand = rng.choice(goods().brands)
    pattern = rng.choice(goods().patterns) if rng.random() < 0.6 else goods().patterns[0]
    materials = rng.sample(kind.materials, k=min(_LINE_SIZE, len(kind.materials)))
    for version, material in enumerate(materials):
        family = f"{line}.{version}"
        attributes = {
            "category": kind.en,
            "brand": brand,
            "material": material,
            "pattern": pattern,
            "size": rng.choice(kind.sizes),
            "room": kind.room,
            "price": str(rng.randint(*kind.price)),
        }
        if kind.capacities:
            attributes["capacity"] = rng.choice(kind.capacities)
        look, taste = rng.randrange(1 << 16), rng.randrange(TASTES)
        for colour in rng.sample(list(goods().colours), k=_FAMILY_SIZE):
            yield _drawn_product(
                kind, attributes | {"colour": colour}, family, look, taste, in_stock=rng.random() > 0.15
            )


def _drawn_product(
    kind: Kind, attributes: Mapping[str, str], family: str, look: int, taste: int, *, in_stock: bool
) -> Product:
    """Return the product without its id."""
    return Product(
        id="",
        title=_english_title(attributes),
        title_zh=_chinese_title(attributes),
        kind=kind.name,
        attributes={**attributes, "stock": "in stock" if in_stock else "sold out"},
        family=family,
        taste=taste,
        look=look,
        in_stock=in_stock,
    )


def _english_title(attributes: Mapping[str, str]) -> str:
    pattern = "" if attributes["pattern"] == "plain" else attributes["pattern"]
    words = (attributes["brand"], attributes["colour"], pattern, attributes["material"], attributes["category"])
    title = " ".join(word for word in words if word)
    return f"{title} {attributes['capacity']}" if "capacity" in attributes else title


def _chinese_title(attributes: Mapping[str, str]) -> str:
    word = goods().chinese
    pattern = "" if attributes["pattern"] == "plain" else word[attributes["pattern"]]
    colour, material, category = (word[attributes[key]] for key in ("colour", "material", "category"))
    return f"{attributes['brand']} {colour}{pattern}{material}{category} {attributes.get('capacity', '')}".strip()


def _read_csv(path: Path, images: Path, seed: int) -> list[Product]:
    table = read_products(path, "data.shop.catalogue_csv")
    _check_pictures(path, table.ids, images)
    return [_csv_product(row, table, images, seed) for row in table.rows]


def _check_pictures(path: Path, ids: Sequence[str], images: Path) -> None:
    """Raise unless every product has its picture; one listing of the folder serves all."""
    try:
        present = {entry.name for entry in images.iterdir()}
    except OSError as error:
        raise CorpusError(
            f"{images}: no such picture folder ({error.strerror}); see data.shop.catalogue_images."
        ) from None
    missing = [item_id for item_id in ids if f"{item_id}.jpg" not in present]
    if missing:
        shown = ", ".join(f"{item_id}.jpg" for item_id in missing[:5])
        raise CorpusError(
            f"{images}: {len(missing)} of {len(ids)} pictures are missing, the first: {shown}. "
            f"Add them or remove the rows from {path}."
        )


def _csv_product(row: Mapping[str, str], table: ProductTable, images: Path, seed: int) -> Product:
    """Return a row as product. What the shop needs and the row lacks (price, material …) is simulated from its id."""
    item_id, title, columns = row[table.id_column], row[table.title_column], table.columns
    category = _first(row, columns, _CATEGORY_COLUMNS)
    kind = _csv_kind((category or title).lower())
    rng = stream(seed, "csv", item_id)
    simulated = {
        "material": rng.choice(kind.materials),
        "size": rng.choice(kind.sizes),
        "price": str(rng.randint(*kind.price)),
        "stock": "in stock" if rng.random() > 0.15 else "sold out",
    }
    if kind.capacities:
        simulated["capacity"] = rng.choice(kind.capacities)
    known = table.attributes(row)
    if not known.get("price", "0").isdecimal():
        known.pop("price")
    attributes = (
        simulated
        | known
        | {
            "category": category or "product",
            "colour": (_first(row, columns, _COLOUR_COLUMNS) or "multi").lower(),
        }
    )
    return Product(
        id=item_id,
        title=title or item_id,
        title_zh=title or item_id,
        kind=kind.name,
        attributes=attributes,
        family=f"{category}/{row.get(columns.get('gender', ''), '')}",
        taste=pick(seed, TASTES, "taste", item_id),
        in_stock=attributes["stock"] == "in stock",
        picture=str(images / f"{item_id}.jpg"),
    )


def _first(row: Mapping[str, str], columns: Mapping[str, str], names: Sequence[str]) -> str:
    return next((row[columns[name]] for name in names if name in columns and row[columns[name]]), "")


def _csv_kind(words: str) -> Kind:
    kinds = goods().kinds
    for name, hints in goods().csv_kinds.items():
        if any(re.search(rf"\b{hint}(e?s)?\b", words) for hint in hints):
            return kinds[name]
    return kinds["tshirt"]
