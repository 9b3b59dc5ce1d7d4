"""The door of the mesh: who may, how much, where to; and what it is called on each wire.

    doors                           translate a wire to work, and an answer back; nothing else
      │
    embedding  reranking  models    validate and tokenise; know no wire
      │
    cache                           answers that are known already
      │
    dispatch                        the way of the rest to a worker
      │
    quotas                          how much each caller may use
      │
    upstreams                       where a model is served, and by whom of several
      │
    overload                        who goes first where room is short
      │
    auth                            who is calling, and what they may do

Order of a request: authenticate, parse, validate everything, tokenise, look for what is known, charge the rest, send it where it is
served best, respond. Nothing is sent upstream that was not validated and charged; what fails is given back.
"""

import os

# gRPC reads it as it is imported. Otherwise it writes lines of its own, in no JSON, whenever a stranger's TLS handshake fails.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
