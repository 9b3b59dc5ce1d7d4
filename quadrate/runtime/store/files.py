"""Files of a model: which ones serving needs, their hashes, and how they are put in place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from quadrate.config.models import PICKLES
from quadrate.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

_HALVES = ("float16", "bfloat16")
_SMALL = re.compile(
    r"(config|tokenizer|tokenizer_config|special_tokens_map|modules|config_sentence_transformers|sentence_[\w-]+_config)\.json|vocab\.txt"
    r"|\d+_\w+/config\.json|adapter_config\.json"
)
_SAFE = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_TORCH = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json")
_HEADS = re.compile(r"(sparse|colbert)_linear\.pt")
_OF_ANOTHER = re.compile(r"\.(onnx\w*|json|txt|md|model|bin|pt|safetensors|py|xml|gguf|pth|pkl|pickle|ckpt|joblib)$|\.onnx[._]")
"""What a folder of graphs holds besides numbers that are named after tensors."""
_MODULE = re.compile(r"(\d+_\w+/)(model\.safetensors|pytorch_model\.bin)")


def needed(names: Iterable[str], *, origin: str, graph: str | None = None) -> list[str]:
    """Choose what serving needs of a source's files, by path.

    Args:
        names: All files, with forward slashes.
        origin: Stands for the source in errors.
        graph: The ONNX graph that is run instead of ours, with its files of numbers: those that are named after it (`model.onnx_data`),
            and those that exporters name after tensors (`Constant_7_attr__value`), where it has a folder of its own.

    Raises:
        StoreError: There are no weights, no config.json or no tokenizer.json among them, or not the graph.
    """
    names = list(names)
    small = [name for name in names if _SMALL.fullmatch(name)]
    missing = [name for name in ("config.json", "tokenizer.json") if name not in small]
    if missing:
        raise StoreError(f"{origin} has no {' and no '.join(missing)}; a model's folder needs both, beside its weights.")
    return sorted([*small, *(_weights(names, origin) if graph is None else _graph(names, origin, graph))])


def _weights(names: list[str], origin: str) -> list[str]:
    """Choose the weights: safetensors, or where there are none the checkpoints of torch, whose tensors are read without running them."""
    found = [name for name in names if _SAFE.fullmatch(name)] or [name for name in names if _TORCH.fullmatch(name)]
    if not any(not name.endswith(".json") for name in found):
        others = [name for name in names if PurePosixPath(name).suffix in PICKLES]
        told = f" ({others[0]} is a pickle, which may run code, and is not opened)" if others else ""
        raise StoreError(
            f"{origin} has no model.safetensors and no pytorch_model.bin{told}; convert the weights with "
            f"save_pretrained(safe_serialization=True){_or_its_graph(names)}."
        )
    modules = [name for name in names if (match := _MODULE.fullmatch(name)) and _is_first(match, names)]
    return [*found, *modules, *(name for name in names if _HEADS.fullmatch(name))]


def _or_its_graph(names: list[str]) -> str:
    graph = next((name for name in names if name.endswith(".onnx")), None)
    return f", or have its own graph run by `graph: {graph}` in the model's card" if graph else ""


def _is_first(module: re.Match[str], names: list[str]) -> bool:
    return module[2] == "model.safetensors" or f"{module[1]}model.safetensors" not in names


def _graph(names: list[str], origin: str, graph: str) -> list[str]:
    if graph not in names:
        raise StoreError(f"{origin} has no {graph}; correct `graph` in the model's card.")
    folder = graph.rpartition("/")[0]
    beside = [name for name in names if name.rpartition("/")[0] == folder and name != f"{folder}/.."]
    return [name for name in beside if name.startswith(graph) or (folder and not _OF_ANOTHER.search(name))]


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hex. About a second for 1.5 GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(path: Path) -> str:
    """Return the name that git gives the file's content, in hex: what a hub states of small files."""
    head = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, head.copy).hexdigest()


def place(source: Path, target: Path) -> None:
    """Make `target` a real file with the content of `source`: a hard link where the file systems allow, a copy elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def inside(folder: Path) -> list[str]:
    """Return the paths of all files below `folder`, relative, with forward slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def weight_bytes(folder: Path, *, graph: str | None = None) -> int:
    """Estimate what a model's weights take in memory: the sizes of their files, twice that where config.json says that they are in half.

    Args:
        folder: The model's.
        graph: The ONNX graph that is run instead of ours; it runs in the numbers that it is written in.

    Raises StoreError if there are none.
    """
    names = inside(folder)
    chosen = _weights(names, str(folder)) if graph is None else _graph(names, str(folder), graph)
    size = sum((folder / name).stat().st_size for name in chosen)
    return size * (2 if graph is None and _is_half(folder / "config.json") else 1)


def _is_half(config: Path) -> bool:
    try:
        said = json.loads(config.read_bytes())
        return (said.get("dtype") or said.get("torch_dtype")) in _HALVES
    except (OSError, ValueError, AttributeError):
        return False
