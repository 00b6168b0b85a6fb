"""One door to model weights: a name resolves to a hub id, a local folder, a GGUF file or a packaged model."""
