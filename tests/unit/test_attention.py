"""Attention in a graph against the same written out in numpy, text by text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import onnxruntime
import pytest

from quadrate.runtime.graphs import rope
from quadrate.runtime.graphs.attention import Heads, attend
from quadrate.runtime.graphs.builder import Builder, Form
from quadrate.runtime.graphs.packed import Packed
from quadrate.runtime.graphs.rope import Rope
from quadrate.runtime.graphs.sight import EVERYTHING, Relative, Sight
from quadrate.runtime.packing import Reading, pack
from quadrate.testing.peak import peak_growth_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from quadrate.runtime.graphs.builder import Kernels
    from quadrate.runtime.graphs.packed import Only
    from quadrate.runtime.weights import Weights

WIDTH = 8
REACH = 5
LENGTHS = (7, 1, 23, 12)
LONG_LENGTHS = (300, 1, 65, 192, 70)
"""Cut into blocks where neighbours are seen alone."""
BYTES_A_TOKEN = 30_000
"""For eight heads of WIDTH values: 256 bytes for each of a dozen rows, and the logits of a block."""


class _NoFiles:
    """Weights for graphs that have none."""

    folder = Path()

    def place(self, array: NDArray[np.float32]) -> None:
        """No array lies in a file."""


def _open(
    write: Callable[[Packed, str], str], inputs: int, form: Form, lengths: tuple[int, ...], kernels: Kernels = "onnxruntime"
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a graph over states of so many values; what is returned runs it on the states of texts of these lengths."""
    to = Builder(cast("Weights", _NoFiles()), kernels=kernels)
    packed = Packed(to)
    states = to.input("states", np.float32, ["t", inputs])
    graph = to.finish({"out": (write(packed, states), form)})
    texts = [Reading.of(np.zeros(length, np.int32)) for length in lengths]
    feeds, _ = pack(texts, [name for name in graph.inputs if name != "states"])
    if kernels == "openvino":
        openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
        model = openvino.Core().compile_model(openvino.Core().read_model(graph.proto), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda rows: model({**feeds, "states": rows})[0]
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(graph.proto, options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["out"], {**feeds, "states": rows})[0]


def _attention(heads: Heads, sight: Sight, table: NDArray[np.float32], only: Only | None = None) -> Callable[[Packed, str], str]:
    """Return what writes attention over states that hold queries, keys and values side by side."""

    def write(packed: Packed, states: str) -> str:
        sizes = [heads.count * WIDTH, heads.keys * WIDTH, heads.keys * WIDTH]
        query, key, value = packed.to.nodes("Split", states, packed.to.ints(*sizes), axis=1, results=3)
        seen = sight
        if sight.relative:
            seen = Sight(causal=sight.causal, window=sight.window, relative=Relative(table=packed.to.constant(table), reach=REACH))
        return attend(packed, packed.pick(query, only) if only else query, key, value, heads=heads, sight=seen, only=only)

    return write


def _expected(rows: NDArray[np.float32], heads: Heads, sight: Sight, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Attention of one text, all tokens."""
    length = len(rows)
    queries, keys, values = np.split(rows, np.cumsum([heads.count, heads.keys]) * WIDTH, axis=1)
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    seen = np.ones((length, length), bool)
    if sight.causal:
        seen &= distance <= 0
    if sight.window is not None:
        seen &= np.abs(distance) <= sight.window
    out = []
    for head in range(heads.count):
        shared = head // (heads.count // heads.keys)
        query, key, value = (part[:, at * WIDTH : (at + 1) * WIDTH] for part, at in ((queries, head), (keys, shared), (values, shared)))
        logits = query @ key.T
        if sight.relative:
            logits = logits + table[head][np.clip(distance, -REACH, REACH) + REACH]
        weights = np.where(seen, np.exp(logits - logits.max(axis=1, keepdims=True)), 0)
        out.append(weights / weights.sum(axis=1, keepdims=True) @ value)
    return np.concatenate(out, axis=1)


SIGHTS = {
    "everything": EVERYTHING,
    "causal": Sight(causal=True),
    "window": Sight(window=3),
    "causal window": Sight(causal=True, window=3),
    "relative": Sight(relative=Relative(table="", reach=REACH)),
    "relative window": Sight(window=8, relative=Relative(table="", reach=REACH)),
}


@pytest.mark.parametrize("lengths", [LENGTHS, LONG_LENGTHS], ids=["short", "long"])
@pytest.mark.parametrize(
    ("kernels", "only"),
    [("onnxruntime", None), ("openvino", None), ("none", None), ("onnxruntime", "first"), ("onnxruntime", "last")],
)
@pytest.mark.parametrize(
    "heads", [Heads(4, WIDTH), Heads(4, WIDTH, 2), Heads(4, WIDTH, 1)], ids=["own keys", "shared by two", "shared by all"]
)
@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_each_token_attends_to_what_it_may_see_of_its_own_text(
    sight: Sight, heads: Heads, only: Only | None, lengths: tuple[int, ...], kernels: Kernels
) -> None:
    """Texts of different lengths in one batch, whatever is seen of them and whoever asks."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((sum(lengths), (heads.count + 2 * heads.keys) * WIDTH), np.float32)
    table = random.standard_normal((heads.count, 2 * REACH + 1), np.float32)

    form = Form("text" if only else "token", heads.count * WIDTH)
    found = _open(_attention(heads, sight, table, only), rows.shape[1], form, lengths, kernels)(rows)
    texts = [_expected(text, heads, sight, table) for text in np.split(rows, np.cumsum(lengths)[:-1])]
    wanted = np.concatenate([text if only is None else text[[0 if only == "first" else -1]] for text in texts])
    np.testing.assert_allclose(found, wanted, atol=5e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [WIDTH, 4])
def test_values_are_turned_by_their_position(turned: int, *, interleaved: bool) -> None:
    """All of a head's values or the first of them, pairs of neighbours or of halves, positions stretched."""
    how = Rope(width=turned, base=100.0, positions=64, interleaved=interleaved, stretch=2.0)
    rows = np.random.default_rng(4).standard_normal((sum(LENGTHS), 3 * WIDTH), np.float32)
    form = Form("token", 3 * WIDTH)
    found = _open(lambda packed, states: rope.turn(packed, how, states, count=3, width=WIDTH), rows.shape[1], form, LENGTHS)(rows)
    wanted = rows.reshape(-1, 3, WIDTH).copy()
    position = np.concatenate([np.arange(length) for length in LENGTHS])[:, None]
    for pair in range(turned // 2):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + turned // 2)
        angle = position / 2.0 * 100.0 ** (-2 * pair / turned)
        x, y = wanted[:, :, first].copy(), wanted[:, :, second].copy()
        wanted[:, :, first], wanted[:, :, second] = x * np.cos(angle) - y * np.sin(angle), y * np.cos(angle) + x * np.sin(angle)
    np.testing.assert_allclose(found, wanted.reshape(found.shape), atol=5e-6)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("tokens", [2_048, 4_096, 8_192])
@pytest.mark.parametrize("sight", ["everything", "causal", "window"])
def test_memory_grows_with_the_length_of_a_text(sight: str, tokens: int) -> None:
    """So many bytes a token suffice at every length; the logits of 8,192 tokens alone would take two gigabytes."""
    heads = Heads(8, WIDTH)
    rows = np.random.default_rng(5).standard_normal((tokens, 3 * 8 * WIDTH), np.float32)
    run = _open(_attention(heads, SIGHTS[sight], np.zeros((8, 1), np.float32)), rows.shape[1], Form("token", 8 * WIDTH), (tokens,))
    assert peak_growth_bytes(lambda: run(rows)) < BYTES_A_TOKEN * tokens < 8 * tokens**2 * 4 / 2
