"""Readers that turn public and private corpora into mmd's records, and ``shop``, the built-in simulator."""
