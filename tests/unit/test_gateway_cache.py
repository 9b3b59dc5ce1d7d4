"""What the gateway knows already, and what it does not take for the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import embeddings, keys, scores
from gateway.cache.cache import Wish, wish
from gateway.cache.memory import ENTRY_BYTES, Memory
from gateway.cache.shared import SEAL_BYTES, seal, unseal
from gateway.upstreams.errand import Errand
from quadrate.testing.worker import fake_card
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2


class _Reader:
    """As much of a model's facts as the cache looks at."""

    class tokenizer:  # noqa: N801 - an attribute of the facts
        """A tokenizer that adds two tokens."""

        special_count = 2

    card = fake_card("fake")


def embed(*texts: list[int], **form: object) -> embed_pb2.EmbedRequest:
    """Return a request for texts of these ids."""
    return embed_pb2.EmbedRequest(inputs=[item(ids) for ids in texts], **form)  # type: ignore[arg-type]


def rerank(query: list[int], *documents: list[int], **form: object) -> rerank_pb2.RerankRequest:
    """Return a request for documents of these ids."""
    request = rerank_pb2.RerankRequest(query_token_ids=options_pb2.TokenIds(ids=query), documents=[item(ids) for ids in documents])
    request.MergeFrom(rerank_pb2.RerankRequest(**form))  # type: ignore[arg-type]
    return request


def item(ids: list[int]) -> options_pb2.Input:
    """Return an input of token ids."""
    return options_pb2.Input(token_ids=options_pb2.TokenIds(ids=ids))


def errand(request: embed_pb2.EmbedRequest | rerank_pb2.RerankRequest, *, tokens: int = 0, counts: tuple[int, ...] = ()) -> Errand:
    """Return an errand as dispatch gets it."""
    method = "embed" if isinstance(request, embed_pb2.EmbedRequest) else "rerank"
    return Errand(method=method, request=request, read_by=_Reader(), tokens=tokens, principal=None, counts=counts)  # type: ignore[arg-type]


def test_what_was_put_is_found_until_it_has_to_go() -> None:
    """The longest unused entry goes first, and the bound is kept."""
    memory = Memory(8 * (ENTRY_BYTES + 10))
    names = [bytes([number]) for number in range(8)]
    assert sum(memory.put(name, b"0123456789") for name in names) == 0
    assert memory.get(names[0]) == b"0123456789"
    assert memory.put(b"new", b"0123456789") == 1
    assert memory.get(names[0]) is not None
    assert memory.get(names[1]) is None
    assert memory.bytes <= memory.max_bytes


def test_what_is_too_large_drives_nothing_out() -> None:
    """A value above an eighth of the room is not kept."""
    memory = Memory(8_000)
    memory.put(b"small", b"1")
    assert memory.put(b"large", b"x" * 1_001) == 0
    assert memory.get(b"large") is None
    assert memory.get(b"small") == b"1"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 300)), max_size=200))
def test_the_count_of_bytes_is_that_of_the_entries(puts: list[tuple[int, int]]) -> None:
    """Whatever is put, replaced and driven out, the sum stays true and bounded."""
    memory = Memory(4_000)
    for name, size in puts:
        memory.put(bytes([name]), b"x" * size)
        kept = [memory.get(bytes([number])) for number in range(21)]
        assert memory.bytes == sum(len(value) + ENTRY_BYTES for value in kept if value is not None) <= 4_000


def test_keys_differ_where_answers_would() -> None:
    """Other ids, another form or another model have another key; company does not change a key."""
    (alone,) = keys.of_texts(b"m", embed([1, 2]))
    first, second = keys.of_texts(b"m", embed([1, 2], [3]))
    assert first == alone != second
    others = [
        *keys.of_texts(b"n", embed([1, 2])),
        *keys.of_texts(b"m", embed([1, 2], dimensions=4)),
        *keys.of_texts(b"m", embed([1, 2], normalize=False)),
        *keys.of_texts(b"m", embed([1, 2], value_type=options_pb2.INT8)),
        *keys.of_texts(b"m", embed([1, 2], outputs=[options_pb2.SPARSE])),
        *keys.of_texts(b"m", embed([258])),
    ]
    assert len({alone, second, *others}) == 2 + len(others)


def test_query_and_document_are_told_apart_in_a_key() -> None:
    """The same ids divided otherwise between query and document have another key, and raw scores another one."""
    found = [
        *keys.of_documents(b"m", rerank([1], [2, 3])),
        *keys.of_documents(b"m", rerank([1, 2], [3])),
        *keys.of_documents(b"m", rerank([1], [2, 3], raw_scores=True)),
    ]
    assert len(set(found)) == 3
    assert list(keys.of_documents(b"m", rerank([1], [9], [2, 3], top_n=1)))[1] == found[0]


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "other"},
        {"precision": options_pb2.SMALL},
        {"provider": "OtherExecutionProvider"},
        {"fingerprint": "other"},
        {"tokenizer_sha256": "0" * 64},
        {"task": model_pb2.TASK_RERANK},
    ],
)
def test_another_way_to_compute_is_another_model(change: dict[str, object]) -> None:
    """A vector is known only for the revision, tokenizer, precision and provider that made it."""
    card = fake_card("fake")
    other = fake_card("fake")
    for name, value in change.items():
        setattr(other, name, value)
    assert keys.maker(card) != keys.maker(other)
    assert keys.maker(card) == keys.maker(fake_card("fake"))
    assert keys.maker(card, scope="a") != keys.maker(card, scope="b")


@pytest.mark.parametrize("made", [{"revision": "other"}, {"fingerprint": "other"}, {"provider": "OtherExecutionProvider"}])
def test_an_answer_of_a_model_as_it_was_before_is_not_kept(made: dict[str, str]) -> None:
    """Replicas are loaded anew one after the other, and the card is that of one of them."""
    card = fake_card("fake")
    names = ("revision", "fingerprint", "precision", "provider")
    told = options_pb2.Provenance(**{name: getattr(card, name) for name in names})
    assert keys.is_made_by(told, card)
    told.MergeFrom(options_pb2.Provenance(**made))  # type: ignore[arg-type]
    assert not keys.is_made_by(told, card)


@pytest.mark.parametrize("name", ["revision", "fingerprint"])
def test_of_a_model_that_does_not_say_how_it_is_made_nothing_is_known(name: str) -> None:
    """It might change at any moment without a word."""
    card = fake_card("fake")
    setattr(card, name, "")
    assert keys.maker(card) is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, Wish.USE),
        ("", Wish.USE),
        ("no-store", Wish.NONE),
        ("No-Store, no-cache", Wish.NONE),
        ("no-cache", Wish.RENEW),
        ("max-age=0", Wish.RENEW),
        ("max-stale=5", Wish.USE),
    ],
)
def test_cache_control_is_read_as_the_rfc_says(said: str | None, meant: Wish) -> None:
    """RFC 9111: unknown directives are ignored, names are in any case."""

    class _Call:
        metadata = {} if said is None else {"cache-control": said}

    assert wish(_Call()) is meant  # type: ignore[arg-type]


@given(st.binary(max_size=64), st.data())
def test_a_value_is_read_only_as_it_was_written(value: bytes, data: st.DataObject) -> None:
    """Cut, lengthened, with another byte, or under another key it is unknown; what was written comes back."""
    sealed = seal(b"key", value)
    assert len(sealed) == len(value) + SEAL_BYTES
    assert unseal(b"key", sealed) == value
    place = data.draw(st.integers(0, len(sealed) - 1))
    flipped = bytes([*sealed[:place], sealed[place] ^ data.draw(st.integers(1, 255)), *sealed[place + 1 :]])
    assert [unseal(b"key", other) for other in (flipped, sealed[:place], sealed + b"0", value, b"")] == [None] * 5
    assert unseal(b"other", sealed) is None


def test_embeddings_come_together_as_they_were_apart() -> None:
    """Every text has its own vector, place and count, whatever was known of it."""
    request = embed([5], [6, 7], [8, 8, 8])
    answer = embed_pb2.EmbedResponse(provenance=options_pb2.Provenance(revision="r"))
    for index in range(3):
        answer.embeddings.add(index=index, values=[float(index), 1.0]).usage.tokens = 99
    whole = embeddings.together(embeddings.apart(answer), errand(request))
    assert [list(found.values) for found in whole.embeddings] == [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
    assert [found.index for found in whole.embeddings] == [0, 1, 2]
    assert [found.usage.tokens for found in whole.embeddings] == [3, 4, 5]
    assert (whole.usage.tokens, whole.provenance.revision) == (12, "r")


def test_only_what_is_missing_is_asked_for_and_charged() -> None:
    """A narrowed errand has the missing texts, their tokens, and the form of the whole."""
    rest = embeddings.narrow(errand(embed([5], [6, 7], [8, 8, 8], dimensions=4), tokens=12), [0, 2])
    assert [list(found.token_ids.ids) for found in rest.request.inputs] == [[5], [8, 8, 8]]  # type: ignore[union-attr]
    assert rest.tokens == 3 + 5
    assert rest.request.dimensions == 4  # type: ignore[union-attr]
    apart = scores.narrow(errand(rerank([1], [2], [3], [4], top_n=1), tokens=3 + 4 + 5 + 6, counts=(4, 5, 6)), [1])
    assert apart.tokens == 3 + 5
    assert not apart.request.HasField("top_n")
    assert scores.narrow(errand(rerank([1], [2]), tokens=7, counts=(4,)), []).tokens == 0


def test_scores_come_together_best_first_and_no_more_than_were_asked_for() -> None:
    """Equal scores go by their place; `top_n` counts over all, known or not."""
    answer = rerank_pb2.RerankResponse()
    for index, score in ((2, 0.9), (0, 0.5), (1, 0.5)):
        answer.results.add(index=index, relevance_score=score)
    whole = scores.together(scores.apart(answer), errand(rerank([1], [2], [3], [4], top_n=2)))
    assert [(found.index, round(found.relevance_score, 3)) for found in whole.results] == [(2, 0.9), (0, 0.5)]
