"""Upstreams that speak HTTP: servers with the OpenAI embeddings and the Cohere, Jina or TEI rerank shapes.

peer        one model at one such server, with the methods of a worker's peer
dialect     which paths and shapes the server has, found by asking
shapes      the shapes: bodies out of requests, vectors and scores out of bodies
exchange    one request and its answer, with limits on everything; failures in our terms
tokenizers  what reads text for a model whose server hands over no tokenizer
"""
