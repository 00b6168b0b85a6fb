"""``shop``: the built-in, seeded simulator of a web shop's conversations, pictures, catalogue and item graph."""

from mmd.corpora.shop.reader import ShopReader

__all__ = ["ShopReader"]
