"""Models in a folder of the operator's own. They are used where they are, so that nothing is kept twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.errors import StoreError
from quadrate.runtime.store.files import inside, needed, sha256

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.config.models import ModelCard


def read(path: Path, card: ModelCard) -> dict[str, str]:
    """Verify the model in `path` and return the SHA-256 of each file that serving needs.

    Raises:
        StoreError: The folder or a file is missing or unreadable, a file is not what the card says, or it is a link that leaves
            the folder.
    """
    if not path.is_dir():
        raise StoreError(f"{path} is no folder; give the path of a folder that holds config.json, tokenizer.json and model.safetensors.")
    names = sorted(card.files) or needed(inside(path), origin=str(path), graph=card.graph)
    found = {name: _hash(path, name) for name in names}
    for name, expected in card.files.items():
        if found[name] != expected:
            raise StoreError(
                f"{path / name} has SHA-256 {found[name]}, the model's card says {expected}; "
                "restore the file, or correct the card in models.yaml."
            )
    return found


def _hash(folder: Path, name: str) -> str:
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{path} is a link that leaves its folder, which ONNX Runtime refuses; copy the folder with cp -rL.")
    try:
        return sha256(path)
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}.") from exc
