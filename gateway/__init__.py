"""The door of the mesh: who may, how much, where to; and what it is called on each wire.

    doors                           translate a wire to work, and an answer back; nothing else
      │
    embedding  reranking  models    validate and tokenise; know no wire
      │
    dispatch                        the way of a validated request to a worker
      │
    upstreams                       where a model is served, and by whom of several
      │
    auth                            who is calling, and what they may do

Order of a request: authenticate, parse, validate everything, tokenise, route, call, respond. Nothing is sent upstream that was not
validated.
"""
