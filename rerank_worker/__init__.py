"""The rerank worker: a query and documents in, the documents by relevance out."""
