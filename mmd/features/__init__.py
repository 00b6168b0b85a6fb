"""Features of pictures and texts: OCR lines, image vectors, sentence vectors; cached by content hash."""
