"""Which pictures customers and shop send, as specifications: photographs, screenshots of pages, damage, scenery."""

from __future__ import annotations

from mmd.corpora.shop.catalogue import Catalogue, Product, goods
from mmd.corpora.shop.choices import Choices
from mmd.corpora.shop.drawing import VIEWS
from mmd.corpora.shop.intents import INTENT_KINDS
from mmd.corpora.shop.specs import SCENES, STYLES, PictureSpec

_SCENERY = 64


def photo(product: Product, view: int) -> PictureSpec:
    """Return a photograph of a product."""
    return PictureSpec(scene="product_photo", item=product.id, variant=view)


def page(scene: str, product: Product, style: int, *, focus: str = "", other: str = "") -> PictureSpec:
    """Return a page about a product; ``focus`` and ``other`` (a product's id) as in :class:`PictureSpec`."""
    spec = PictureSpec(scene=scene, item=product.id, variant=style)
    if focus:
        spec["focus"] = focus
    if other:
        spec["other"] = other
    return spec


def possible_scenes(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the scenes that the catalogue has products for."""
    return tuple(name for name in SCENES if name != "size_chart" or "fits" in catalogue.by_trait)


def can_leak(product: Product) -> bool:
    """Return whether the product holds something, so that its damage may be a leak."""
    return "holds" in goods().kinds[product.kind].traits


class Pictures:
    """Draws the pictures that a customer sends.

    Args:
        choices: source of every choice.
    """

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    def photo(self, product: Product) -> PictureSpec:
        """Return a photograph of the product from any side."""
        return photo(product, self._choices.rng.randrange(VIEWS))

    def random_page(self, product: Product) -> PictureSpec:
        """Return a page that decides nothing."""
        scene = self._choices.rng.choice(("order_page", "cart_page", "logistics_tracking", "review_page"))
        return page(scene, product, self._style(scene, product))

    def deciding(self, intent: str, product: Product) -> PictureSpec:
        """Return the picture that decides the intent."""
        kind = INTENT_KINDS[intent]
        if kind.scene == "damaged_item":
            return self._damaged(product, kind.focus)
        other = self._choices.other_version(product).id if kind.scene == "compare_page" else ""
        return page(kind.scene, product, self._style(kind.scene, product), focus=kind.focus, other=other)

    def scene(self, scene: str) -> PictureSpec:
        """Return a picture of a scene, as a customer might send it without a word."""
        choices = self._choices
        if scene == "other":
            return PictureSpec(scene=scene, item="", variant=choices.rng.randrange(_SCENERY))
        if scene == "damaged_item":
            fading = choices.chance(0.4)
            return self._damaged(choices.product("dyed" if fading else "any"), "fade" if fading else "crack")
        product = choices.product("fits" if scene == "size_chart" else "any")
        if scene == "product_photo":
            return self.photo(product)
        focus = ""
        if scene == "detail_page":
            focus = choices.rng.choice(_detail_sections(product))
        if scene == "payment_page" and choices.chance(0.5):
            focus = "failed"
        if scene == "order_page" and choices.chance(0.3):
            focus = "short"
        other = choices.other_version(product).id if scene == "compare_page" else ""
        return page(scene, product, self._style(scene, product), focus=focus, other=other)

    def _damaged(self, product: Product, focus: str) -> PictureSpec:
        """Return a customer's photograph of a damaged product; what can leak may leak instead of being cracked."""
        if focus == "crack" and can_leak(product) and self._choices.chance(0.5):
            focus = "leak"
        variant = 1 + self._choices.rng.randrange(VIEWS - 1)
        return PictureSpec(scene="damaged_item", item=product.id, variant=variant, focus=focus)

    def _style(self, scene: str, product: Product) -> int:
        """Draw one of the few screenshots that go around of a product's page."""
        return self._choices.few(STYLES, "style", scene, product.id)


def _detail_sections(product: Product) -> list[str]:
    traits = goods().kinds[product.kind].traits
    sections = ["overview", "overview", "material"]
    sections += ["capacity"] * ("holds" in traits) + ["care"] * ("washed" in traits) + ["usage"] * ("used" in traits)
    return sections if product.in_stock else [*sections, "stock"]
