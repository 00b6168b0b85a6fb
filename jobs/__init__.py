"""One thin script a pipeline verb; the only batch code that touches Ray."""
