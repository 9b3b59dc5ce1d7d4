"""Where models are served: routes by name, the replicas behind each, and the wires to them.

routes     the table in force, and how one follows another without a failed request
table      names to pools, as one reading of the routing file has them
names      the addresses behind host names
pool       one model's replicas: which of them gets a request, and which the next try
retries    how often requests may be tried again
outliers   which replicas do worse than their like
replica    one model at one worker: whether it serves
pulse      whether a worker's process shows signs of life
peers      one worker process: its channel, and its errors as ours
"""
