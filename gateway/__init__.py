"""The door of the mesh: who may, how much, where to; and what it is called on each wire.

    native  openai  cohere          doors: translate a wire to work, and an answer back; nothing else
            │
    embedding  reranking  models    core: validate, tokenise, route, call; knows no wire
            │
    routes → pool → replica         where a model is served, and by whom of several

Order of a request: authenticate, parse, validate everything, tokenise, route, call, respond. Nothing is sent upstream that was not
validated.
"""
