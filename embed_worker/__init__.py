"""The embed worker: texts in, vectors out."""
