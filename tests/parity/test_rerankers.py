"""Rerankers through a worker, from text to score, against sentence-transformers' CrossEncoder and Qwen's own recipe."""

# ruff: noqa: PLC0415, S106 - torch and transformers are imported by the tests that need them; tokens here are words

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1 import options_pb2, rerank_pb2
from tests import vocabularies
from tests.parity import folders
from tests.service.workers.conftest import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from sentence_transformers import CrossEncoder

pytestmark = pytest.mark.parity

MAX_TOKENS = 96
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "num_labels": 1}
BERT_SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
XLM_SPECIAL = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
TYPED = ["input_ids", "token_type_ids", "attention_mask"]
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"config": {"max_position_embeddings": 512}, "special": {**BERT_SPECIAL, "model_input_names": TYPED}},
    "xlm-roberta": {
        "config": {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
        "special": XLM_SPECIAL,
    },
    "modernbert": {
        "config": {"max_position_embeddings": 512, "classifier_pooling": "mean", "local_attention": 16, "pad_token_id": 0},
        "special": BERT_SPECIAL,
    },
}
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bert": lambda: Tokenizer.from_buffer(letter_tokenizer()),
    "xlm-roberta": vocabularies.xlm_roberta,
    "modernbert": vocabularies.modernbert,
}
QUERY = "Where are stars born?"
DOCUMENTS = [*vocabularies.SENTENCES, "x", "the cat sat on the mat", "stars " * 12, "far beyond the limit, gas and dust " * 30]

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
QWEN_TOKENS = 300
QWEN_CARD = {
    "scoring": "causal",
    "activation": "sigmoid",
    "max_tokens": QWEN_TOKENS,
    "answers": {"yes": "yes", "no": "no"},
    "pair": {
        "prefix": PREFIX,
        "query": "<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
        "document": " {document}",
        "suffix": SUFFIX,
        "instruction": INSTRUCTION,
    },
}


@asynccontextmanager
async def reranker(path: Path, **card: Any) -> AsyncIterator[Callable[..., Any]]:
    """Run a worker for the model in a folder and give a function that asks it: DOCUMENTS unless it is told others."""
    catalogue = path.parent / "models.yaml"
    source = {"type": "folder", "path": str(path)}
    cards = {"model": {"served_name": "tests/model", "task": "rerank", "scoring": "cross_encoder", "source": source, **card}}
    catalogue.write_text(json.dumps({"models": cards}))

    async with running("rerank", catalogue, "model") as made:

        async def ask(documents: Sequence[str] = DOCUMENTS, query: str = QUERY, **fields: Any) -> rerank_pb2.RerankResponse:
            inputs = [options_pb2.Input(text=document) for document in documents]
            answer: rerank_pb2.RerankResponse = await made.rerank.Rerank(
                rerank_pb2.RerankRequest(
                    **{"model": "model", "query": query, "documents": inputs, "truncation": options_pb2.RIGHT, **fields}  # type: ignore[arg-type]
                )
            )
            return answer

        yield ask


def cross_encoder(path: Path, family: str, *, padding_side: str = "right", **changes: Any) -> CrossEncoder:
    """Save a random cross-encoder of a family as sentence-transformers saves it, and return it."""
    import transformers
    from sentence_transformers import CrossEncoder

    made = FAMILIES[family]
    tokenizer = TOKENIZERS[family]()
    sizes = {**SIZES, "vocab_size": tokenizer.get_vocab_size(), **made["config"], **changes}
    config = transformers.AutoConfig.for_model(family, **sizes)
    source = path / "source"
    folders.save(folders.shake(transformers.AutoModelForSequenceClassification.from_config(config)), source)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, padding_side=padding_side, **made["special"]
    ).save_pretrained(source)
    encoder = CrossEncoder(str(source), device="cpu")
    encoder.save_pretrained(str(path / "saved"))
    return encoder


def scores_of(answer: rerank_pb2.RerankResponse) -> np.ndarray:
    """Return the scores in the documents' order."""
    return np.array([result.relevance_score for result in sorted(answer.results, key=lambda result: result.index)])


def assert_same(answer: rerank_pb2.RerankResponse, expected: np.ndarray) -> None:
    """Assert that scores differ by no more than 1e-5 of the largest, and that documents stand in the same order."""
    assert np.ptp(expected) > 0.05
    assert np.abs(scores_of(answer) - expected).max() <= folders.FAR * np.abs(expected).max()
    assert [result.index for result in answer.results] == np.argsort(-expected, kind="stable").tolist()


@pytest.mark.parametrize("family", FAMILIES)
async def test_scores_and_order_are_those_of_cross_encoder(tmp_path: Path, family: str) -> None:
    """Relevance is `CrossEncoder.predict`'s, its sigmoid included, raw scores are its logits; documents stand as `rank` has them."""
    import torch

    encoder = cross_encoder(tmp_path, family)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    async with reranker(tmp_path / "saved") as ask:
        answer = await ask()
        assert_same(answer, encoder.predict(pairs))
        assert_same(await ask(raw_scores=True), encoder.predict(pairs, activation_fn=torch.nn.Identity()))
        assert [result.index for result in answer.results] == [one["corpus_id"] for one in encoder.rank(QUERY, DOCUMENTS)]
        lengths = [len(ids) for ids in encoder.tokenizer(pairs, truncation=True, max_length=MAX_TOKENS)["input_ids"]]
        assert [result.usage.tokens for result in sorted(answer.results, key=lambda result: result.index)] == lengths
        assert answer.usage.tokens == sum(lengths)


@pytest.mark.parametrize("family", FAMILIES)
async def test_each_truncation_is_the_tokenizers_own(tmp_path: Path, family: str) -> None:
    """A document is cut on the right or the left as the tokenizer cuts the second text; one at the limit is not cut."""
    encoder = cross_encoder(tmp_path, family)
    async with reranker(tmp_path / "saved") as ask:
        for side, truncation in (("right", options_pb2.RIGHT), ("left", options_pb2.LEFT)):
            encoder.tokenizer.truncation_side = side
            read = encoder.tokenizer([(QUERY, one) for one in DOCUMENTS], truncation="only_second", max_length=MAX_TOKENS, padding=True)
            expected = logits(encoder, read)
            assert_same(await ask(truncation=truncation, raw_scores=True), expected)


async def test_left_padding_changes_nothing(tmp_path: Path) -> None:
    """A tokenizer that pads on the left serves as one that pads on the right."""
    encoder = cross_encoder(tmp_path, "bert", padding_side="left")
    async with reranker(tmp_path / "saved") as ask:
        assert_same(await ask(), np.array([encoder.predict([(QUERY, document)])[0] for document in DOCUMENTS]))


IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("config_sentence_transformers.json", {"activation_fn": IDENTITY}),
        ("config.json", {"sentence_transformers": {"activation_fn": IDENTITY}}),
        ("config.json", {"sbert_ce_default_activation_function": IDENTITY}),
    ],
    ids=["version 6", "version 4", "before"],
)
async def test_an_activation_that_the_folder_names_is_used(tmp_path: Path, name: str, named: dict[str, Any]) -> None:
    """With Identity, as ms-marco-MiniLM has it, relevance is the logit; wherever a version of sentence-transformers has written it."""
    import torch
    from sentence_transformers import CrossEncoder

    cross_encoder(tmp_path, "bert")
    rewrite(tmp_path / "saved" / "config_sentence_transformers.json", {"activation_fn": None})
    rewrite(tmp_path / "saved" / name, named)
    encoder, pairs = CrossEncoder(str(tmp_path / "saved"), device="cpu"), [(QUERY, document) for document in DOCUMENTS]
    expected = encoder.predict(pairs)
    assert expected.tolist() == encoder.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
    async with reranker(tmp_path / "saved") as ask:
        assert_same(await ask(), expected)


async def test_what_version_6_has_written_comes_first(tmp_path: Path) -> None:
    """An activation in config_sentence_transformers.json overrules one in config.json, as in sentence-transformers."""
    from sentence_transformers import CrossEncoder

    cross_encoder(tmp_path, "bert")
    rewrite(tmp_path / "saved" / "config.json", {"sentence_transformers": {"activation_fn": IDENTITY}})
    expected = CrossEncoder(str(tmp_path / "saved"), device="cpu").predict([(QUERY, document) for document in DOCUMENTS])
    assert 0 < expected.min() < expected.max() < 1
    async with reranker(tmp_path / "saved") as ask:
        assert_same(await ask(), expected)


def rewrite(file: Path, changes: dict[str, Any]) -> None:
    """Change values of a JSON file; None takes a key out."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def logits(encoder: CrossEncoder, read: Any) -> np.ndarray:
    """Return the logits for what was read of some pairs."""
    import torch

    with torch.inference_mode():
        found = encoder.model(**{name: torch.tensor(rows) for name, rows in read.items()}).logits
    return np.asarray(found[:, 0])


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """Save a random Qwen3 with a tokenizer like its own, and return its folder."""
    import torch
    import transformers

    tokenizer = vocabularies.qwen()
    config = transformers.Qwen3Config(
        vocab_size=tokenizer.get_vocab_size() + 3,  # the real one has rows to spare, too
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = folders.shake(transformers.Qwen3ForCausalLM(config))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.25)  # they are the head, too: probabilities that are neither 0 nor 1
    folder = folders.save(model, tmp_path / "qwen")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32768, padding_side="left", pad_token="<|endoftext|>", eos_token="<|im_end|>"
    ).save_pretrained(folder)
    return folder


def recipe(path: Path, query: str, documents: Sequence[str], instruction: str) -> tuple[np.ndarray, np.ndarray]:
    """Score as the model's card does with transformers: template, left padding, log-softmax of no and yes at the last token.

    Returns the probabilities of yes, and the logits of yes less those of no.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    prefix = tokenizer.encode(PREFIX, add_special_tokens=False)
    suffix = tokenizer.encode(SUFFIX, add_special_tokens=False)
    pairs = [f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}" for document in documents]
    read = tokenizer(
        pairs,
        padding=False,
        truncation="longest_first",
        return_attention_mask=False,
        max_length=QWEN_TOKENS - len(prefix) - len(suffix),
    )
    read["input_ids"] = [prefix + ids + suffix for ids in read["input_ids"]]
    padded = tokenizer.pad(read, padding=True, return_tensors="pt")
    with torch.no_grad():
        last = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, -1, :]
    no, yes = tokenizer.convert_tokens_to_ids("no"), tokenizer.convert_tokens_to_ids("yes")
    scores = torch.nn.functional.log_softmax(torch.stack([last[:, no], last[:, yes]], dim=1), dim=1)
    return np.asarray(scores[:, 1].exp()), np.asarray(last[:, yes] - last[:, no])


@pytest.mark.parametrize("instruction", ["", "Judge whether the text is about bread"])
async def test_a_causal_reranker_scores_as_its_card_does(qwen: Path, instruction: str) -> None:
    """Relevance is the probability of yes against no, with the card's instruction or the request's; long documents are cut."""
    expected, difference = recipe(qwen, QUERY, DOCUMENTS, instruction or INSTRUCTION)
    async with reranker(qwen, **QWEN_CARD) as ask:
        answer = await ask(instruction=instruction)
        assert_same(answer, expected)
        assert_same(await ask(instruction=instruction, raw_scores=True), difference)
        assert answer.provenance.prompt == (instruction or INSTRUCTION)
        assert {result.index: result.usage.tokens for result in answer.results}[len(DOCUMENTS) - 1] == QWEN_TOKENS
