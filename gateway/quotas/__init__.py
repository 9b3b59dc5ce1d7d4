"""How much each caller may use: counted before any work, given back when nothing came of it.

    quotas      what the rest of the gateway sees: admit, charge, and the charge that a call then holds
      │
    ledger      which store counts: Redis, shared by all gateways; or this process, alone or with a share while Redis is away
      │
    local, shared     the same semantics twice: dictionaries, and scripts in Redis
      │
    rules       what a limit is: a bucket, a day, or leases; and whose

Every limit of a request is looked at together, and charged only if all of them have room.
"""
