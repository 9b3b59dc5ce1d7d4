"""A folder's own ONNX graph, for models that we do not write ourselves: padded, fed by its own input names, pooled here.

Its batches are rectangles. Texts are put into them by length, so that little of a rectangle is padding, and each is run by itself. The
graph runs in the numbers that it is written in; a class of precision other than `exact` is refused for it.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from quadrate.errors import ConfigError
from quadrate.runtime.encoders.foreign import Foreign
from quadrate.runtime.graphs.builder import Form
from quadrate.runtime.packing import Layout, Reading
from quadrate.runtime.sessions import cuda
from quadrate.runtime.sessions.onnx import cpu_options
from quadrate.runtime.sessions.way import CPU, CUDA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.folder import Facts
    from quadrate.runtime.sessions.way import Way

    Array = NDArray[np.float32]

MAX_PADDED = 1.25
"""The most places of a rectangle for each token in it, unless one text alone is longer than the rest."""

_TOKENS = ("last_hidden_state", "token_embeddings")
_TEXTS = "sentence_embedding"
_SCORES = "logits"
_TOKEN_RANK = 3


class OwnGraphSession:
    """A model that runs by its folder's own graph.

    Args:
        facts: Of the model; `facts.graph` names the file.
        way: What runs it.
        threads: Cores of the model, on a CPU.

    Raises ConfigError if the graph takes or gives something else than is served, keeps numbers outside the folder, or cannot be run.
    """

    def __init__(self, facts: Facts, way: Way, *, threads: int) -> None:
        if way.precision != "exact":
            raise ConfigError(
                f"{facts.path}: its own graph {facts.graph} is run as it is written; set the precision to exact, or leave `graph` out."
            )
        self.provider = way.provider
        self._facts = facts
        path = facts.path / facts.graph
        self.weight_bytes = _check_files(path, facts.path)
        """What its numbers take."""
        self._narrow = _open(path, way, threads=1)
        self._wide = self._narrow if threads == 1 or way.provider != CPU else _open(path, way, threads=threads)
        self._inputs = _inputs(path, self._narrow)
        self._output = _output(path, self._narrow, facts)
        self.forms: Mapping[str, Form] = self._forms()
        """What it gives, by the name of the output."""

    def run(
        self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool, is_long: bool = False
    ) -> Mapping[str, Sequence[Array]]:
        """See Session."""
        session = self._wide if wide else self._narrow
        found: dict[int, Array] = {}
        for places in rectangles([len(reading) for reading in readings]):
            found.update(zip(places, self._run([readings[place] for place in places], session), strict=True))
        rows = [found[place] for place in range(len(readings))]
        return {output: [_FINISH[output](row) for row in rows] for output in outputs}

    def close(self) -> None:
        """See Session."""
        del self._narrow, self._wide

    def _run(self, readings: Sequence[Reading], session: onnxruntime.InferenceSession) -> list[Array]:
        """Run one rectangle and return for each text what the head makes of it: `[width]`, or `[tokens, width]`."""
        layout = Layout(readings)
        feeds = {name: _FEEDS[name](layout, self._facts).astype(dtype) for name, dtype in self._inputs.items()}
        (result,) = session.run([self._output], feeds)
        values = result.astype(np.float32, copy=False)
        if values.ndim != _TOKEN_RANK:
            return list(values)
        states = [state[: len(reading)] for state, reading in zip(values, readings, strict=True)]
        return states if self._facts.head == "token_vectors" else [_POOLINGS[self._facts.pooling](state) for state in states]

    def _forms(self) -> Mapping[str, Form]:
        """Run a text of two tokens, which shows that the graph runs, and how wide its answers are."""
        try:
            (row,) = self._run([Reading.of(np.zeros(2, np.int32))], self._narrow)
        except Exception as error:  # the library's exceptions share no base of their own
            raise ConfigError(f"{self._facts.path / self._facts.graph}: cannot be run: {error}") from error
        names = {"classification": ("score",), "token_vectors": ("multi_vector",)}.get(self._facts.head, ("pooled", "unit"))
        if names == ("score",) and row.shape != (1,):
            raise ConfigError(f"{self._facts.path / self._facts.graph}: gives scores of the shape {list(row.shape)}; a reranker has one.")
        return {name: Form("text" if row.ndim == 1 else "token", row.shape[-1]) for name in names}


def rectangles(lengths: Sequence[int]) -> list[list[int]]:
    """Divide texts into rectangles with little padding; return their places, longest first. At least one text a rectangle."""
    found: list[list[int]] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if found:
            area = lengths[found[-1][0]] * (len(found[-1]) + 1)
            if area <= MAX_PADDED * (tokens + lengths[place]):
                found[-1].append(place)
                tokens += lengths[place]
                continue
        found.append([place])
        tokens = lengths[place]
    return found


def _check_files(path: Path, folder: Path) -> int:
    """Return the bytes of a graph's files. Raises ConfigError if one lies outside the model's folder, or is missing."""
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # the library's own, and those of protobuf
        raise ConfigError(f"{path}: cannot be read as an ONNX graph; fetch the model again.") from error
    names = {entry.value for tensor in _tensors(graph) for entry in tensor.external_data if entry.key == "location"}
    files = [path]
    for name in sorted(names):
        file = path.parent / name
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or not file.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{path}: keeps numbers in {name!r}, outside the model's folder; this version reads none there.")
        if not file.is_file():
            raise ConfigError(f"{path}: keeps numbers in {name}, which is not in the folder; fetch it, too (`files` in the model's card).")
        files.append(file)
    return sum(file.stat().st_size for file in files)


def _tensors(message: Any) -> list[onnx.TensorProto]:
    """Return all tensors of a graph, however deep they lie."""
    found: list[onnx.TensorProto] = []
    for _, value in message.ListFields():
        for part in value if isinstance(value, MutableSequence) else [value]:
            if isinstance(part, onnx.TensorProto):
                found.append(part)
            elif hasattr(part, "ListFields"):
                found += _tensors(part)
    return found


def _open(path: Path, way: Way, *, threads: int) -> onnxruntime.InferenceSession:
    options = cuda.session_options() if way.provider == CUDA else cpu_options(threads)
    settings = cuda.provider_options(way.gpu) if way.provider == CUDA else {}
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(way.provider, settings)])
    except Exception as error:  # the library's exceptions share no base of their own
        raise ConfigError(f"{path}: {way.provider} cannot open the graph: {error}") from error
    if session.get_providers()[0] != way.provider:
        raise ConfigError(f"{path}: {way.provider} was asked for, {session.get_providers()[0]} would be used; the worker does not start.")
    return session


def _inputs(path: Path, session: onnxruntime.InferenceSession) -> dict[str, type[np.integer[Any]]]:
    """Return the graph's inputs and their numbers. Raises ConfigError for one that is not served."""
    kinds: Mapping[str, type[np.integer[Any]]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    found = {}
    for given in session.get_inputs():
        if given.name not in _FEEDS or given.type not in kinds:
            raise ConfigError(f"{path}: takes {given.name!r} of {given.type}; this version gives {', '.join(_FEEDS)}, whole numbers.")
        found[given.name] = kinds[given.type]
    return found


def _output(path: Path, session: onnxruntime.InferenceSession, facts: Facts) -> str:
    """Return the output that the head needs. Raises ConfigError if the graph has none, or the head is not served so."""
    there = [given.name for given in session.get_outputs()]
    wanted: Mapping[str, tuple[str, ...]] = {"pooled": (_TEXTS, *_TOKENS), "token_vectors": _TOKENS, "classification": (_SCORES,)}
    if facts.head not in wanted:
        raise ConfigError(f"{path}: a model of this kind ({facts.head}) is served from its weights alone; leave `graph` out of its card.")
    for name in wanted[facts.head]:
        if name in there:
            if name in _TOKENS and facts.after_pooling:
                raise ConfigError(f"{path}: gives token states, and the layers after the pooling are in another file; leave `graph` out.")
            return name
    raise ConfigError(f"{path}: gives {', '.join(there)}; this version needs {' or '.join(wanted[facts.head])}.")


def _ids(layout: Layout, facts: Facts) -> NDArray[np.int64]:
    padding = facts.encoder.padding_id if isinstance(facts.encoder, Foreign) else 0
    ids = np.full(layout.is_real.shape, padding, np.int64)
    ids[layout.is_real] = np.concatenate([reading.ids for reading in layout.readings])
    return ids


def _mask(layout: Layout, _: Facts) -> NDArray[np.int64]:
    return layout.is_real.astype(np.int64)


def _types(layout: Layout, facts: Facts) -> NDArray[np.int64]:
    second = np.array([reading.second for reading in layout.readings], np.int64)[:, None]
    return ((layout.column >= second) & layout.is_real & facts.has_pair_types).astype(np.int64)


def _positions(layout: Layout, facts: Facts) -> NDArray[np.int64]:
    first = facts.encoder.first_position if isinstance(facts.encoder, Foreign) else 0
    return np.where(layout.is_real, layout.column + first, 0)


def _unit(row: Array) -> Array:
    length = np.linalg.norm(row, axis=-1, keepdims=True)
    return np.asarray(row / np.maximum(length, 1e-12), np.float32)


def _as_it_is(row: Array) -> Array:
    return row


_FEEDS: Mapping[str, Callable[[Layout, Facts], NDArray[np.int64]]] = {
    "input_ids": _ids,
    "attention_mask": _mask,
    "token_type_ids": _types,
    "position_ids": _positions,
}
"""Every input that a graph may take, `[B, S]`."""

_POOLINGS: Mapping[str, Callable[[Array], Array]] = {
    "mean": lambda states: np.asarray(states.mean(axis=0), np.float32),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
}
"""What is made of a text's token states, `[tokens, width]` to `[width]`."""

_FINISH: Mapping[str, Callable[[Array], Array]] = {"pooled": _as_it_is, "unit": _unit, "multi_vector": _unit, "score": _as_it_is}
