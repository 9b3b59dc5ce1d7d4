"""The real weights in each class of precision: how far any of 500 texts' vectors is from float32's, and what company does to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import corpus
from quadrate.config import lock
from quadrate.config.worker import EmbedSettings
from quadrate.errors import ConfigError
from quadrate.runtime import engine, store
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import AGREEMENT, CUDA, LOWEST_COSINE, choose, gpu
from quadrate.v1.options_pb2 import RIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from quadrate.config.worker import Precision
    from quadrate.runtime.engine import Model

    Array = NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[2]
TEXTS = 500
RUN_TOKENS = 256
RUNS_OF_STRANGERS = 40


def load(device: str, precision: Precision) -> Model:
    """Load the quick start's model; skips where this machine cannot give the class."""
    try:
        choose(device, precision)
    except ConfigError as reason:
        pytest.skip(str(reason))
    card = lock.load(ROOT / "configs" / "models.yaml").models["minilm"]
    return engine.load("minilm", card, store.ensure("minilm", card), EmbedSettings(device=device, precision=precision, threads=2))


@pytest.fixture(scope="module")
def exact() -> Model:
    """The model in float32, on the CPU."""
    return load("cpu", "exact")


@pytest.fixture(scope="module")
def texts(exact: Model) -> list[Reading]:
    """Paragraphs of every length as the model reads them."""
    tokenizer = exact.tokenizer
    return [
        Reading.of(tokenizer.read(tokenizer.fit(ids, RIGHT, param="text")[0]))
        for ids in tokenizer.encode(corpus.paragraphs(TEXTS, seed=11))
    ]


@pytest.fixture(scope="module")
def golden(exact: Model, texts: list[Reading]) -> Array:
    """Their vectors in float32."""
    return vectors(exact, texts)


def runs(texts: Sequence[Reading]) -> Iterator[list[int]]:
    """Cut texts into runs as a worker has them: neighbours in length, up to RUN_TOKENS."""
    run: list[int] = []
    for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
        if run and sum(len(texts[other]) for other in run) + len(texts[place]) > RUN_TOKENS:
            yield run
            run = []
        run.append(place)
    yield run


def vectors(model: Model, texts: Sequence[Reading]) -> Array:
    """Return the texts' vectors."""
    found = np.empty((len(texts), model.forms["unit"].width), np.float32)
    for run in runs(texts):
        found[run] = model.session.run([texts[place] for place in run], ["unit"], wide=False)["unit"]
    return found


@pytest.mark.parametrize("precision", ["fast", "small"])
def test_a_class_keeps_its_promise_on_every_text(texts: list[Reading], golden: Array, precision: Precision) -> None:
    """The cosine of each text's vector to float32's is at least what the class promises."""
    found = vectors(load("cpu", precision), texts)
    cosines = (found * golden).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() >= LOWEST_COSINE[precision]


@pytest.mark.parametrize("precision", ["exact", "fast", "small"])
def test_a_text_answers_alike_in_any_company(texts: list[Reading], golden: Array, precision: Precision) -> None:
    """In random runs of strangers, a text's vector is what it is among texts of its own length, within the published tolerance."""
    model, random = load("cpu", precision), np.random.default_rng(2)
    usual = golden if precision == "exact" else vectors(model, texts)
    for _ in range(RUNS_OF_STRANGERS):
        run = random.choice(len(texts), int(random.integers(1, 10)), replace=False)
        found = np.stack(model.session.run([texts[place] for place in run], ["unit"], wide=bool(random.integers(2)))["unit"])
        assert np.abs(found - usual[run]).max() <= AGREEMENT[precision] * np.abs(usual[run]).max()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_gpu_gives_what_the_processor_gives(texts: list[Reading], golden: Array, precision: Precision) -> None:
    """On a GPU, each class keeps its promise on every text, in float32 to five digits."""
    if not gpu.count():
        pytest.skip("CUDA shows no GPU to this process.")
    model = load("gpu", precision)
    assert model.session.provider == CUDA
    cosines = (vectors(model, texts) * golden).sum(axis=1)
    assert cosines.min() >= (0.99999 if precision == "exact" else LOWEST_COSINE[precision])
