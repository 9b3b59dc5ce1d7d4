"""Texts for measuring: English-like paragraphs of mixed length, the same for the same seed anywhere.

Lengths are log-normal: of 46 tokens on average for an English WordPiece vocabulary, 30 at the median and 132 at the 95th percentile,
cut at 256, as passages in a retrieval index are. Words follow Zipf's law; most are one token, some are two or three.
"""

from __future__ import annotations

import re

import numpy as np

MEDIAN_WORDS = 27.5
SPREAD = 0.88
"""Standard deviation of the logarithm of the number of words."""
MOST_WORDS = 235

_TEXT = """
the of and to in a is that for it was on are as with they at be this have from or by one had not but what all were when we there can
an your which their said if will each about how up out them then she many some so these would other into has more her two like him
see time could no make than first been its who now people my made over did down only way find use may water long little very after
words called just where most know get through back much before also around another came come work three word must because does part
even place well such here take why things help put years different away again off went old number great tell men say small every
found still between name should home big give air line set own under read last never us left end along while might next sound below
saw something thought both few those always looked show large often together asked house world going want school important until
form food keep children feet land side without boy once animals life enough took sometimes four head above kind began almost live
page got earth need far hand high year mother light parts country father let night following picture being study second eyes soon
times story boys since white days ever paper hard near sentence better best across during today others however sure means knew try
told young miles sun ways thing whole hear example heard several change answer room sea against top turned learn point city play
toward five using himself usually retrieval embedding vector index latency throughput reranker tokenizer passages documents query
corpus scheduler gateway batching quantile percentile deterministic reproducible measurement bandwidth microarchitecture
"""
WORDS = tuple(re.findall(r"\w+", _TEXT))


def paragraphs(count: int, *, seed: int = 1) -> list[str]:
    """Return `count` paragraphs."""
    random = np.random.default_rng(seed)
    weights = 1.0 / (np.arange(len(WORDS)) + 8.0)
    weights /= weights.sum()
    lengths = np.clip(random.lognormal(np.log(MEDIAN_WORDS), SPREAD, count), 2, MOST_WORDS).astype(int)
    return [_paragraph(list(random.choice(WORDS, size=length, p=weights)), random) for length in lengths]


def _paragraph(words: list[str], random: np.random.Generator) -> str:
    """Put words into sentences of 5 to 20."""
    sentences = []
    while words:
        length = int(random.integers(5, 21))
        sentence, words = words[:length], words[length:]
        sentences.append(" ".join(sentence).capitalize() + ".")
    return " ".join(sentences)
