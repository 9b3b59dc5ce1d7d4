"""Answers that are known already: exact ones, by text.

    cache       what is asked of it, where it looks, and what it tells
    keys        what makes two answers the same one
    memory      this process's: bounded by bytes, the longest unused goes first
    shared      all gateways': Redis or Valkey
    embeddings  scores      requests taken apart by text or document, and answers put together

A request of which a part is known goes on with the rest. What is known is neither computed nor charged again; the request itself counts.
"""
