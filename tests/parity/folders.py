"""Tiny models of transformers with random weights, saved as the hub has them, and ways to compare our graphs with them."""

# ruff: noqa: PLC0415 - torch and transformers are imported when they are needed, so that collecting needs neither

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.runtime.encoders import FAMILIES
from quadrate.runtime.folder import Facts
from quadrate.runtime.graphs import build
from quadrate.runtime.jsonfile import JsonFile
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import CPU, OnnxSession
from quadrate.runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from quadrate.runtime.graphs import Graph
    from quadrate.runtime.graphs.builder import Kernels

    Array = NDArray[np.float32]

VOCABULARY = 120
MAX_TOKENS = 512
LENGTHS = (1, 2, 3, 9, 64, 65, 130, 300, 511, MAX_TOKENS)
"""One token, few, many, as many as there are positions for."""

_ASKING = re.compile(r"query|key|q_proj|k_proj|Wqkv|\.[qk]\.")
"""The weights of queries and keys, as the families call them."""

FAR = 1e-5
"""The largest difference, relative to the largest value."""
NEAR = 0.999999
"""The smallest cosine."""


def shake(model: Any, *, seed: int = 7) -> Any:
    """Give a new model random weights, biases and norms included, and return it for inference.

    Products keep the spread of their rows, but those of queries and keys double it: attention is far from uniform, and rounding errors
    do not grow from layer to layer.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            middle = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(middle + _spread(name, parameter.shape) * torch.randn(parameter.shape, generator=random))
    return model.eval()


def _spread(name: str, shape: Sequence[int]) -> float:
    if len(shape) == 1:
        return 0.2
    if "embed" in name or "shared" in name:
        return 1.0
    return (2.0 if _ASKING.search(name) else 1.0) * float(shape[1]) ** -0.5


def save(model: Any, path: Path) -> Path:
    """Save a model of transformers, config and weights."""
    model.save_pretrained(path)
    return path


def session(path: Path, **facts: Any) -> OnnxSession:
    """Open the model in a folder; `facts` overrule the plain ones of an embedding model with mean pooling."""
    return OnnxSession(graph(path, **facts), CPU, threads=1)


def graph(path: Path, kernels: Kernels = "onnxruntime", **facts: Any) -> Graph:
    """Write the graph of the model in a folder, as `session` opens it."""
    config = JsonFile(path / "config.json")
    family = str(config.data["model_type"])
    encoder = FAMILIES[family].read(config)
    plain: dict[str, Any] = {
        "path": path,
        "architecture": family,
        "encoder": encoder,
        "max_tokens": encoder.max_positions,
        "pooling": "mean",
        "normalize": True,
        "head": "pooled",
        "prompts": {},
        "default_prompt_name": "",
    }
    return build(Facts(**{**plain, **facts}), Weights(path), kernels=kernels)


def readings(lengths: Sequence[int] = LENGTHS, *, pairs: bool = False, seed: int = 5) -> list[Reading]:
    """Return random texts of these lengths, or pairs whose second text begins anywhere."""
    random = np.random.default_rng(seed)
    texts = [random.integers(4, VOCABULARY, length).astype(np.int32) for length in lengths]
    return [Reading(ids, int(random.integers(1, len(ids) + 1)) if pairs else len(ids)) for ids in texts]


def types(reading: Reading) -> list[int]:
    """Return the token types of a pair."""
    return [int(place >= reading.second) for place in range(len(reading))]


def compare(opened: OnnxSession, output: str, texts: Sequence[Reading], expected: Callable[[Reading], Array]) -> None:
    """Assert that each text has what is expected of it: alone, and in a batch of mixed lengths."""
    wanted = [expected(text) for text in texts]
    largest = max(float(np.abs(want).max()) for want in wanted)
    together = opened.run(texts, [output], wide=False)[output]
    alone = [opened.run([text], [output], wide=False)[output][0] for text in texts]
    for found in (together, alone):
        for row, want in zip(found, wanted, strict=True):
            assert_same(row, want, largest)


def assert_same(found: Array, expected: Array, largest: float) -> None:
    """Assert that values are the same to FAR of the largest one there is, and that each row points the same way."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= FAR * largest
    if found.shape[-1] > 1:
        norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
        cosines = (found.astype(np.float64) * expected).sum(axis=-1) / norms
        assert cosines.min() >= NEAR


def states(model: Any, **more: Callable[[Reading], Any]) -> Callable[[Reading], Array]:
    """Return a function that gives a model's last hidden states of a text, `[tokens, width]`."""
    return _asker(model, lambda answer: answer.last_hidden_state[0], **more)


def logits(model: Any, **more: Callable[[Reading], Any]) -> Callable[[Reading], Array]:
    """Return a function that gives a model's logits of a text."""
    return _asker(model, lambda answer: answer.logits[0], **more)


def _asker(model: Any, pick: Callable[[Any], Any], **more: Callable[[Reading], Any]) -> Callable[[Reading], Array]:
    import torch

    def ask(text: Reading) -> Array:
        given = {name: torch.tensor([make(text)]) for name, make in more.items()}
        with torch.inference_mode():
            found = pick(model(input_ids=torch.tensor([text.ids.tolist()]), **given))
        values: Array = found.float().numpy()
        return values

    return ask


def unit(rows: Array) -> Array:
    """Bring rows to length one."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def is_far_from_uniform(model: Any, text: Reading) -> bool:
    """Whether the strongest weight of a token's attention is on average eight times an equal share, in each layer."""
    import torch

    model.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = model(input_ids=torch.tensor([text.ids.tolist()]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return all(float(layer.max(-1).values.mean()) * len(text) > 8 for layer in layers)
