"""Every form and value type of an embedding, by a worker over tiny models with bge-m3's and SPLADE's heads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from quadrate.testing.model_folder import WIDTH, tiny_config, tiny_weights
from quadrate.v1 import embed_pb2, model_pb2, options_pb2
from quadrate.v1.options_pb2 import DENSE, MULTI_VECTOR, SPARSE
from quadrate.vectors import DTYPES, convert
from tests.service.workers.conftest import running
from tests.service.workers.test_embed_worker import reason, request, vectors
from tests.tiny_models import write_bge_m3, write_splade

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TEXTS = ("the cat sat on the mat", "hello", "cat cat dog cat")
DOG = 8
"""The id of that word."""
ALL = [DENSE, SPARSE, MULTI_VECTOR]


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A catalogue of the two."""
    return write_catalogue(tmp_path)


def write_catalogue(tmp_path: Path, *, multi_vector_width: int = WIDTH) -> Path:
    """Write a catalogue of the two and return its path."""
    cards: dict[str, Any] = {
        "three": {"served_name": "tests/three", "task": "embed", "matryoshka_dimensions": [16], "instruction": "find {instruction}: "},
        "splade": {"served_name": "tests/splade", "task": "embed"},
    }
    cards["three"]["source"] = {"type": "folder", "path": str(write_bge_m3(tmp_path / "three", multi_vector_width=multi_vector_width))}
    cards["splade"]["source"] = {"type": "folder", "path": str(write_splade(tmp_path / "splade"))}
    path = tmp_path / "heads.yaml"
    path.write_text(json.dumps({"models": cards}))  # JSON is YAML
    return path


def sparse(entry: embed_pb2.Embedding) -> dict[int, float]:
    """Return a sparse vector as a dictionary."""
    return dict(zip(entry.sparse.token_ids, entry.sparse.weights, strict=True))


def rows(entry: embed_pb2.Embedding) -> NDArray[np.float32]:
    """Return a multi-vector in float32."""
    return np.array(entry.multi_vector.values, np.float32).reshape(entry.multi_vector.rows, entry.multi_vector.width)


async def test_three_forms_come_from_one_request(heads: Path) -> None:
    """What each gives beside the others is what it gives alone, for each text alone or in company."""
    async with running("embed", heads, "three") as made:
        together = await made.embed.Embed(request(*TEXTS, model="three", outputs=ALL))
        dense = await made.embed.Embed(request(*TEXTS, model="three"))
        for place, text in enumerate(TEXTS):
            entry = together.embeddings[place]
            (lexical,) = (await made.embed.Embed(request(text, model="three", outputs=[SPARSE]))).embeddings
            (many,) = (await made.embed.Embed(request(text, model="three", outputs=[MULTI_VECTOR]))).embeddings
            assert sparse(lexical) == pytest.approx(sparse(entry), abs=1e-5)
            np.testing.assert_allclose(rows(many), rows(entry), atol=1e-5)
            assert [field.name for field, _ in lexical.ListFields()] == ["index", "sparse", "usage"]
            assert [field.name for field, _ in many.ListFields()] == ["index", "multi_vector", "usage"]
    np.testing.assert_allclose(vectors(together), vectors(dense), atol=1e-5)


async def test_weights_and_rows_are_of_words(heads: Path) -> None:
    """Sparse ids are among the text's own, ascending, without special tokens; rows leave out the first token and have length one."""
    async with running("embed", heads, "three") as made:
        answer = await made.embed.Embed(request(*TEXTS, model="three", outputs=[SPARSE, MULTI_VECTOR]))
        tokenize = model_pb2.TokenizeRequest(model="three", inputs=[options_pb2.Input(text=text) for text in TEXTS])
        read = [list(one.ids) for one in (await made.models.Tokenize(tokenize)).tokenizations]
    assert any(sparse(entry) for entry in answer.embeddings)
    for entry, ids in zip(answer.embeddings, read, strict=True):
        found = list(entry.sparse.token_ids)
        assert found == sorted(set(found))
        assert set(found) <= set(ids[1:-1])
        assert min(sparse(entry).values(), default=1) > 0
        assert entry.multi_vector.rows == len(ids) - 1 == entry.usage.tokens - 1
        np.testing.assert_allclose(np.linalg.norm(rows(entry), axis=1), 1, atol=1e-5)


async def test_a_card_tells_how_wide_rows_are(tmp_path: Path) -> None:
    """They may be narrower than the dense vector; a model without rows has no such width."""
    path = write_catalogue(tmp_path, multi_vector_width=24)
    async with running("embed", path, "three", "splade") as made:
        cards = (await made.models.ListModels(model_pb2.ListModelsRequest())).models
    told = {card.name: (card.dimensions, card.multi_vector_dimensions, card.HasField("multi_vector_dimensions")) for card in cards}
    assert told == {"three": (32, 24, True), "splade": (0, 0, False)}


@pytest.mark.parametrize("value_type", [number for number in options_pb2.ValueType.values() if number != options_pb2.FLOAT32 and number])
async def test_value_types_are_made_of_the_float32_answer(heads: Path, value_type: int) -> None:
    """Dense vectors and the rows of multi-vectors, bit for bit; sparse weights stay float32."""
    async with running("embed", heads, "three") as made:
        plain = (await made.embed.Embed(request(TEXTS[0], model="three", outputs=ALL))).embeddings[0]
        packed = (await made.embed.Embed(request(TEXTS[0], model="three", outputs=ALL, value_type=value_type))).embeddings[0]
    wanted = convert(np.array(plain.values, np.float32), value_type)
    assert not packed.values
    assert np.array_equal(np.frombuffer(packed.packed_values, DTYPES[value_type]), wanted)
    assert packed.sparse == plain.sparse
    many = np.frombuffer(packed.multi_vector.packed_values, DTYPES[value_type])
    assert np.array_equal(many.reshape(packed.multi_vector.rows, packed.multi_vector.width), convert(rows(plain), value_type))


async def test_a_card_may_allow_any_width_from_one_on(heads: Path) -> None:
    """The card tells it, and what is narrower is refused."""
    file = json.loads(heads.read_text())
    file["models"]["three"] |= {"matryoshka_dimensions": [], "matryoshka_dimensions_from": 5}
    heads.write_text(json.dumps(file))
    async with running("embed", heads, "three") as made:
        assert vectors(await made.embed.Embed(request("hello", model="three", dimensions=7))).shape == (1, 7)
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="three"))).model
        assert (card.matryoshka_dimensions_from, list(card.matryoshka_dimensions)) == (5, [])
        with pytest.raises(grpc.aio.AioRpcError, match="any from 5 to 32"):
            await made.embed.Embed(request("hello", model="three", dimensions=4))


async def test_dimensions_cut_the_dense_vector_alone(heads: Path) -> None:
    """The other forms beside it stay whole; without a dense vector there is nothing to cut."""
    async with running("embed", heads, "three") as made:
        (entry,) = (await made.embed.Embed(request("cat", model="three", outputs=ALL, dimensions=16))).embeddings
        assert (len(entry.values), entry.multi_vector.width) == (16, 32)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made.embed.Embed(request("cat", model="three", outputs=[SPARSE], dimensions=16))
    assert reason(caught.value) == ("INVALID_VALUE", "dimensions")


async def test_provenance_speaks_of_dense_vectors_where_there_are_any(heads: Path) -> None:
    """Whether they have length one says nothing of sparse vectors."""
    async with running("embed", heads, "three") as made:
        dense = (await made.embed.Embed(request("cat", model="three"))).provenance
        lexical = (await made.embed.Embed(request("cat", model="three", outputs=[SPARSE]))).provenance
    assert dense.normalized
    assert not lexical.HasField("normalized")


@pytest.mark.parametrize("output", [DENSE, SPARSE, MULTI_VECTOR])
async def test_what_is_no_number_is_never_answered(tmp_path: Path, output: int) -> None:
    """In whatever form it was asked for; what else the model reads is answered."""
    weights = tiny_weights(tiny_config())
    weights["embeddings.word_embeddings.weight"][DOG] = np.nan
    folder = write_bge_m3(tmp_path / "three", weights=weights)
    cards = {"three": {"served_name": "tests/three", "task": "embed", "source": {"type": "folder", "path": str(folder)}}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": cards}))
    async with running("embed", tmp_path / "models.yaml", "three") as made:
        assert (await made.embed.Embed(request("cat", model="three", outputs=[output]))).embeddings
        with pytest.raises(grpc.aio.AioRpcError, match="no number") as caught:
            await made.embed.Embed(request("dog", model="three", outputs=[output]))
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_splade_gives_sparse_vectors_alone(heads: Path) -> None:
    """Its card says so, and asking for nothing in particular is refused with what to ask for."""
    async with running("embed", heads, "splade") as made:
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="splade"))).model
        assert (list(card.outputs), card.HasField("dimensions"), card.HasField("normalized")) == ([SPARSE], False, False)
        answer = await made.embed.Embed(request(*TEXTS, model="splade", outputs=[SPARSE]))
        with pytest.raises(
            grpc.aio.AioRpcError, match=r"'splade' has no dense vectors\. Ask the native API for what it gives: outputs SPARSE"
        ):
            await made.embed.Embed(request("cat", model="splade"))
    for entry in answer.embeddings:
        assert entry.sparse.token_ids
        assert all(0 <= token < card.vocabulary_size for token in entry.sparse.token_ids)
        assert min(entry.sparse.weights) > 0


async def test_cards_tell_forms_and_instruction(heads: Path) -> None:
    """What may be asked for stands in the model's card; an instruction goes into its template."""
    async with running("embed", heads, "three") as made:
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="three"))).model
        assert (list(card.outputs), card.dimensions, card.instruction_template) == (ALL, 32, "find {instruction}: ")
        answer = await made.embed.Embed(request("cat", model="three", instruction="the mat"))
        written = await made.embed.Embed(request("find the mat: cat", model="three"))
    assert answer.provenance.prompt == "find the mat: "
    np.testing.assert_allclose(vectors(answer), vectors(written), atol=1e-6)


async def test_an_answer_that_no_message_could_carry_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """The size of multi-vectors is known from the tokens; a smaller value type may fit."""
    folder = write_bge_m3(tmp_path / "long", max_tokens=400, max_position_embeddings=512)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    cards = {"long": {"served_name": "tests/long", "task": "embed", "source": {"type": "folder", "path": str(folder)}}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": cards}))
    async with running("embed", tmp_path / "models.yaml", "long") as made:
        proven = made.worker.scheduler.runs
        big = request(*["cat " * 390] * 1500, model="long", outputs=[MULTI_VECTOR])
        with pytest.raises(grpc.aio.AioRpcError, match="would have 75072000 bytes; at most 67043328") as caught:
            await made.embed.Embed(big)
        assert reason(caught.value) == ("ANSWER_TOO_LARGE", "inputs")
        assert made.worker.scheduler.runs == proven
