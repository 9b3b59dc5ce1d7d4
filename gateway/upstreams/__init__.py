"""Where models are served: routes by name, the replicas behind each, and the wires to them.

routes     the table in force, and how one follows another without a failed request
table      names to pools, as one reading of the routing file has them
pool       one model's replicas: which of them gets a request, and which the next try
replica    one model at one worker: whether it serves
peers      one worker process: its channel, and its errors as ours
"""
