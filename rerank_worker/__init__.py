"""The rerank worker: a query and documents in, the documents by relevance out."""

import os

# gRPC reads it as it is imported. Otherwise it writes lines of its own, in no JSON, whenever a stranger's TLS handshake fails.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
