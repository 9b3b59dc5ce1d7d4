"""What keeps a flood from everybody else: who goes first, who has to wait, and who is refused at once.

Mechanisms alone, which know no wire, no route and no worker.

priority   what callers ask for
refusals   what a worker has no room for, so that it is not asked again too soon
"""
