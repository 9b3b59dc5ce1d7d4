"""Small tokenizers of the kinds that rerankers have, trained on a few sentences: at the borders of texts they do what the real ones do."""

# ruff: noqa: S106 - tokens here are words

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = (
    "Given a web search query, retrieve relevant passages that answer the query",
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided.",
    'Note that the answer can only be "yes" or "no". yes no yes no',
    "<Instruct>: <Query>: <Document>: system user assistant think",
    "Where are stars born? Stars are born in cold clouds of gas.",
    "Bread rises because yeast makes gas, and the oven sets the crumb.",
    "Где рождаются звёзды? In den Wolken, 1234567 Lichtjahre weit. 星は雲の中で生まれる。",
)
_QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
SIZE = 400


def qwen() -> Tokenizer:
    """Byte-level pairs over Qwen's split, NFC before it, nothing added around a text; `yes` and `no` are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens(list(QWEN_SPECIAL))
    return tokenizer


def modernbert() -> Tokenizer:
    """Byte-level pairs between [CLS] and [SEP], without token types."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=_ids(tokenizer, "[CLS]", "[SEP]")
    )
    return tokenizer


def xlm_roberta() -> Tokenizer:
    """Unigram pieces of words that begin with a bar, between `<s>` and `</s>`; two `</s>` stand between the texts of a pair."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=SIZE // 2, special_tokens=special, unk_token="<unk>", show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=_ids(tokenizer, "<s>", "</s>")
    )
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> None:
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)


def _ids(tokenizer: Tokenizer, *tokens: str) -> list[tuple[str, int]]:
    return [(token, tokenizer.token_to_id(token)) for token in tokens]
