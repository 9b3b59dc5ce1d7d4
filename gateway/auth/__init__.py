"""Who is calling: what a request shows of itself, and what that may do.

authenticator    reads the headers, and decides which of the others to ask
  │
keys    tokens   API keys by their digests; tokens by their signatures, with what their claims say
          │
        signing  the issuer's keys: cached, fetched again as they age and when a token names one that is new
"""
