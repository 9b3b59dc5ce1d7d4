"""Make tests/golden and configs/golden again: what sentence-transformers makes of texts and a ranking with the weights of `minilm`.

    python tools/golden_vectors.py FOLDER

tests/golden has 200 texts, configs/golden the few that are compared whenever the model is loaded. FOLDER holds the model
(`quadrate models list` shows where). Needs the parity extra (make install-parity). The texts have every length from 3 tokens to the model's
limit, and beyond it, where sentence-transformers cuts on the right; some are not English.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.config import yamlfile
from quadrate.config.models import ModelsFile
from quadrate.runtime import golden

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
TEXTS = 200
MOST_WORDS = 420

STRANGE = (
    "Ä ö ü ß é ñ ç: accents are folded by an uncased vocabulary.",
    "这是一个句子。Chinese characters stand alone.",
    "Привет, мир! Ελληνικά, עברית, العربية, हिन्दी.",
    "An emoji 🙂, a flag 🇩🇪, a family 👩‍👩‍👧‍👦 and a zero-width\u200bspace.",
    "tabs\tand\nline\r\nbreaks   and\u00a0hard\u2003spaces",
    "ONE-WORD",
    "Supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "https://example.org/path?query=1&other=two#fragment user@example.org 3.14159 1,000,000 $5 50%",
    "[CLS] [SEP] [MASK] [PAD] [UNK] ##ing",
    "a" * 150,
)

QUERY = "Which fruits are red?"
DOCUMENTS = (
    "Bananas are yellow when they are ripe.",
    "An apple may be red, green or yellow, and tastes sweet.",
    "The train to the coast leaves at nine.",
    "Tomatoes are red, and to a botanist they are fruits.",
    "A car has four wheels.",
)


def texts() -> list[str]:
    """Return the texts: STRANGE, then paragraphs of evenly growing length."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from corpus import WORDS  # noqa: PLC0415 - the path was just added

    random = np.random.default_rng(20)
    lengths = np.unique(np.linspace(1, MOST_WORDS, TEXTS - len(STRANGE)).astype(int))
    return [*STRANGE, *(" ".join(random.choice(WORDS, size=length)) + "." for length in lengths)]


def late_interaction(model: Any, asked: str, documents: Sequence[str]) -> list[float]:
    """Return the raw score of each document: MaxSim over the model's token states of length one, from -1 to 1."""

    def states(text: str) -> np.ndarray:
        found = model.encode([text], output_value="token_embeddings", normalize_embeddings=False)[0].cpu().numpy().astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)  # [tokens, H]

    query = states(asked)
    return [float((query @ states(document).T).max(axis=1).mean()) for document in documents]


def shipped(model: Any, revision: str, made_by: str) -> None:
    """Write configs/golden, in the format of quadrate.runtime.golden."""
    vectors = model.encode(list(golden.TEXTS), batch_size=1, convert_to_numpy=True)
    texts = tuple(golden.GoldenText(text=text, dense=golden.packed(vector)) for text, vector in zip(golden.TEXTS, vectors, strict=True))
    scores = tuple(late_interaction(model, golden.QUERY, golden.DOCUMENTS))
    ranking = golden.GoldenRanking(query=golden.QUERY, documents=golden.DOCUMENTS, scores=scores)
    for alias, content in {"minilm": {"texts": texts}, "minilm-rerank": {"rankings": (ranking,)}}.items():
        golden.write(ROOT / "configs" / "golden" / f"{alias}.json", golden.Golden(revision=revision, made_by=made_by, **content))


def main(folder: str) -> None:
    """Write all files."""
    import sentence_transformers  # noqa: PLC0415 - only this tool needs it
    import torch  # noqa: PLC0415

    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    found = texts()
    vectors = model.encode(found, batch_size=1, convert_to_numpy=True)
    made_by = {"sentence-transformers": sentence_transformers.__version__, "torch": torch.__version__, "max_tokens": model.max_seq_length}
    GOLDEN.mkdir(exist_ok=True)
    GOLDEN.joinpath("minilm.json").write_text(
        json.dumps({"made_by": made_by, "texts": found}, ensure_ascii=False, indent=0) + "\n", "utf-8"
    )
    np.savez_compressed(GOLDEN / "minilm.npz", vectors=vectors.astype(np.float32))
    scores = [(1 + score) / 2 for score in late_interaction(model, QUERY, DOCUMENTS)]
    ranking = {"made_by": made_by, "query": QUERY, "documents": DOCUMENTS, "scores": scores}
    GOLDEN.joinpath("minilm-rerank.json").write_text(json.dumps(ranking, indent=0) + "\n", "utf-8")
    revision = yamlfile.load(ROOT / "configs" / "models.yaml", ModelsFile).models["minilm"].revision or ""
    shipped(model, revision, f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}")
    sys.stdout.write(f"{len(found)} texts, {vectors.shape[1]} wide\n")


if __name__ == "__main__":
    main(sys.argv[1])
