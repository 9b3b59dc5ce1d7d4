"""What keeps a flood from everybody else: who goes first, who has to wait, and who is refused at once.

Mechanisms alone, which know no wire, no route and no worker.

priority   what callers ask for
room       what the gateway itself has in hand, and each caller's part of it
refusals   what a worker has no room for, so that it is not asked again too soon
gate       how much a server gets that cannot refuse, and who waits for it
"""
