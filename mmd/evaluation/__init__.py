"""Metrics that merge, and the reports made of them."""
