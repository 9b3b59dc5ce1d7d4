"""Tiny random models of every kind in the catalogue, laid out as the hub lays them out, and what their own cards say to do with them.

The recipes are written out here once more, from the models' cards and with transformers, so that a card of ours that is wrong is seen.
"""

# ruff: noqa: PLC0415, S106 - torch and transformers are imported when they are needed; tokens here are words

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, processors

from quadrate.testing.tokenizers import letter_tokenizer
from tests import vocabularies
from tests.parity import folders, test_bert, test_modernbert, test_nomic_bert, test_qwen3, test_t5

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.float32]

LIMIT = 300
"""The most tokens that the tiny models read; each has positions for 512."""

ROWS = 420
"""Rows of their word tables: more than any of the small tokenizers has entries."""

_BERT = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
_XLM = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_TYPED = ["input_ids", "token_type_ids", "attention_mask"]
_MODULES = "sentence_transformers.models"


@dataclass(frozen=True, slots=True)
class Embedder:
    """A tiny embedding model and the recipe of its card.

    Attributes:
        model: The encoder, as transformers has it.
        pool: Makes a vector of its last hidden states `[tokens, width]`.
        prompts: What stands before a text of each role.
        sparse: Makes weights by token id, of a text's ids and what the model gives for it.
        multi_vector: Makes the vectors of a text's tokens.
    """

    model: Any
    pool: Callable[[Array], Array] | None
    prompts: Mapping[str, str] = field(default_factory=dict)
    sparse: Callable[[list[int], Array], dict[int, float]] | None = None
    multi_vector: Callable[[Array], Array] | None = None

    def states(self, ids: Sequence[int]) -> Array:
        """Return the last hidden states of a text, or its logits: `[tokens, …]`."""
        import torch

        with torch.inference_mode():
            answer = self.model(torch.tensor([list(ids)]))
        found = answer.logits if "logits" in answer else answer.last_hidden_state
        values: Array = found[0].float().numpy()
        return values


@dataclass(frozen=True, slots=True)
class Reranker:
    """A tiny cross-encoder and the recipe of its card.

    Attributes:
        model: The classifier, as transformers has it.
        activation: Makes the relevance of its logit.
    """

    model: Any
    activation: Callable[[Array], Array]


def ids_of(path: Path, *texts: str, limit: int = LIMIT) -> list[int]:
    """Return what transformers reads of a text or a pair: cut on the right, of a pair the second text."""
    return _read(path, *texts, limit=limit)["input_ids"]


def score_of(made: Reranker, path: Path, query: str, document: str) -> float:
    """Return a document's relevance as transformers gives it."""
    import torch

    with torch.inference_mode():
        logits = made.model(**{name: torch.tensor([row]) for name, row in _read(path, query, document).items()}).logits[0]
    return float(made.activation(logits.numpy())[0])


def _read(path: Path, *texts: str, limit: int = LIMIT) -> dict[str, list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, truncation_side="right")
    strategy = "only_second" if len(texts) > 1 else True
    return dict(tokenizer(*texts, truncation=strategy, max_length=limit))


def mean(states: Array) -> Array:
    """Return the mean of the tokens' states, of length one."""
    return folders.unit(states.mean(0))


def first(states: Array) -> Array:
    """Return the first token's state, of length one."""
    return folders.unit(states[0])


def last(states: Array) -> Array:
    """Return the last token's state, of length one."""
    return folders.unit(states[-1])


def centred_mean(states: Array) -> Array:
    """Return the mean after a layer norm without weights, of length one: nomic-embed-text-v1.5's card."""
    pooled = states.mean(0)
    return folders.unit((pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-5))


def sigmoid(logits: Array) -> Array:
    """Return the logistic function's values."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))), np.float32)


def identity(logits: Array) -> Array:
    """Return the logits."""
    return logits


def bge_m3(path: Path, **sizes: int) -> Embedder:
    """XLM-R in a torch file, with two more beside it."""
    import torch

    model = test_bert.make("xlm-roberta", "AutoModel", vocab_size=ROWS, **sizes)
    save_torch(model, path)
    lexical, colbert = (folders.shake(torch.nn.Linear(64, outputs)) for outputs in (1, 64))
    torch.save(lexical.state_dict(), path / "sparse_linear.pt")
    torch.save(colbert.state_dict(), path / "colbert_linear.pt")
    save_tokenizer(path, vocabularies.xlm_roberta(), **_XLM)
    modules(path, pooling="cls_token")
    special = set(range(4))

    def sparse(ids: list[int], states: Array) -> dict[int, float]:
        with torch.inference_mode():
            weights = torch.relu(lexical(torch.from_numpy(states)))[:, 0].tolist()
        found: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=True):
            if token not in special and weight > 0:
                found[token] = max(weight, found.get(token, 0.0))
        return found

    def vectors(states: Array) -> Array:
        with torch.inference_mode():
            return folders.unit(colbert(torch.from_numpy(states[1:])).numpy())

    return Embedder(model, first, sparse=sparse, multi_vector=vectors)


def multilingual_e5(path: Path) -> Embedder:
    """XLM-R with mean pooling and the prompts that its card has."""
    model = test_bert.make("xlm-roberta", "AutoModel", vocab_size=ROWS)
    folders.save(model, path)
    save_tokenizer(path, vocabularies.xlm_roberta(), **_XLM)
    modules(path, pooling="mean_tokens")
    return Embedder(model, mean, {"": "query: ", "query": "query: ", "document": "passage: "})


def frida(path: Path) -> Embedder:
    """T5's encoder with a gate, pooled at the first token."""
    model = test_t5.make(vocab_size=ROWS, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    folders.save(model, path)
    tokenizer = vocabularies.xlm_roberta()
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[end])
    save_tokenizer(path, tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    modules(path, pooling="cls_token")
    return Embedder(model, first, {"query": "search_query: ", "document": "search_document: "})


def qwen3_embedding(path: Path, **sizes: int) -> Embedder:
    """Qwen3, pooled at the last token, which is one that the tokenizer adds; padded on the left."""
    model = test_qwen3.make(vocab_size=ROWS, **sizes)
    folders.save(model, path)
    tokenizer = vocabularies.qwen()
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[end])
    save_tokenizer(path, tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left")
    modules(path, pooling="lasttoken")
    asked = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    return Embedder(model, last, {"query": asked})


def gte_modernbert(path: Path, **sizes: int) -> Embedder:
    """ModernBERT, pooled at the first token, without prompts."""
    model = test_modernbert.make("ModernBertModel", vocab_size=ROWS, **sizes)
    folders.save(model, path)
    save_tokenizer(path, vocabularies.modernbert(), **_BERT, model_input_names=["input_ids", "attention_mask"])
    modules(path, pooling="cls_token", normalize=False)
    return Embedder(model, first)


def nomic(path: Path) -> Embedder:
    """NomicBERT in the files that the hub has: other names for sizes and tensors, and code of its own beside them."""
    from safetensors.numpy import save_file

    model = test_nomic_bert.make("NomicBertModel")
    path.mkdir()
    save_file(
        test_nomic_bert.first_names({name: tensor.numpy() for name, tensor in model.state_dict().items()}), path / "model.safetensors"
    )
    code = {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}
    config = {**test_nomic_bert.FIRST_CONFIG, "architectures": ["NomicBertModel"], "auto_map": code}
    (path / "config.json").write_text(json.dumps(config))
    save_tokenizer(path, Tokenizer.from_buffer(letter_tokenizer()), **_BERT, model_input_names=_TYPED)
    modules(path, pooling="mean_tokens", normalize=False)
    return Embedder(model, centred_mean, {"query": "search_query: ", "document": "search_document: "})


def bge_en(path: Path) -> Embedder:
    """BERT, pooled at the first token; queries have a prompt, documents none."""
    model = test_bert.make("bert", "AutoModel", vocab_size=ROWS)
    folders.save(model, path)
    save_tokenizer(path, Tokenizer.from_buffer(letter_tokenizer()), **_BERT, model_input_names=_TYPED)
    modules(path, pooling="cls_token")
    return Embedder(model, first, {"query": "Represent this sentence for searching relevant passages: "})


def splade(path: Path) -> Embedder:
    """BERT's masked language model in a torch file, without modules."""
    model = test_bert.make("bert", "AutoModelForMaskedLM", vocab_size=ROWS)
    save_torch(model, path)
    save_tokenizer(path, Tokenizer.from_buffer(letter_tokenizer()), **_BERT, model_input_names=_TYPED)

    def sparse(_: list[int], logits: Array) -> dict[int, float]:
        weights = np.log1p(np.maximum(logits, 0)).max(0)
        return {token: float(weight) for token, weight in enumerate(weights) if weight > 0}

    return Embedder(model, None, sparse=sparse)


def ms_marco(path: Path) -> Reranker:
    """BERT's classifier, whose activation its config.json names."""
    model = test_bert.make("bert", "AutoModelForSequenceClassification", vocab_size=ROWS)
    model.config.sbert_ce_default_activation_function = "torch.nn.modules.linear.Identity"
    folders.save(model, path)
    save_tokenizer(path, Tokenizer.from_buffer(letter_tokenizer()), **_BERT, model_input_names=_TYPED)
    return Reranker(model, identity)


def bge_reranker(path: Path) -> Reranker:
    """XLM-R's classifier."""
    model = test_bert.make("xlm-roberta", "AutoModelForSequenceClassification", vocab_size=ROWS)
    folders.save(model, path)
    save_tokenizer(path, vocabularies.xlm_roberta(), **_XLM, model_input_names=["input_ids", "attention_mask"])
    return Reranker(model, sigmoid)


def gte_reranker(path: Path) -> Reranker:
    """ModernBERT's classifier, which pools the mean."""
    model = test_modernbert.make("ModernBertForSequenceClassification", vocab_size=ROWS, classifier_pooling="mean")
    folders.save(model, path)
    save_tokenizer(path, vocabularies.modernbert(), **_BERT, model_input_names=["input_ids", "attention_mask"])
    return Reranker(model, sigmoid)


def save_torch(model: Any, path: Path) -> None:
    """Save config and a pytorch_model.bin, as repositories from before safetensors have them."""
    import torch

    path.mkdir()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")


def save_tokenizer(path: Path, tokenizer: Tokenizer, **said: Any) -> None:
    """Save the two files of a fast tokenizer; the limit in there is larger than the cards'."""
    import transformers

    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=10**6, **said).save_pretrained(path)


def modules(path: Path, *, pooling: str, normalize: bool = True) -> None:
    """Write what sentence-transformers of before version 6 writes."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    entries = [{"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"{_MODULES}.{kind}"} for n, kind in enumerate(kinds)]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    flags = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **flags, "include_prompt": True}))
    (path / "modules.json").write_text(json.dumps(entries))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))


EMBEDDERS: Mapping[str, Callable[[Path], Embedder]] = {
    "bge-m3": bge_m3,
    "multilingual-e5-large": multilingual_e5,
    "frida": frida,
    "qwen3-embedding-0.6b": qwen3_embedding,
    "gte-modernbert-base": gte_modernbert,
    "nomic-embed-text-v1.5": nomic,
    "bge-small-en-v1.5": bge_en,
    "bge-base-en-v1.5": bge_en,
    "bge-large-en-v1.5": bge_en,
    "splade": splade,
}
RERANKERS: Mapping[str, Callable[[Path], Reranker]] = {
    "rerank-base": ms_marco,
    "bge-reranker-v2-m3": bge_reranker,
    "gte-reranker-modernbert-base": gte_reranker,
}
