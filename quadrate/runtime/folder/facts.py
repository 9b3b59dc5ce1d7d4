"""Everything that is needed to serve a model right, as card and folder say it together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from quadrate.pairs import PairLayout
    from quadrate.runtime.encoders import Encoder
    from quadrate.runtime.graphs.after_pooling import Dense, LayerNorm

Pooling = Literal["mean", "cls", "last", "splade"]
"""How token states become one vector: their mean, the first, the last, or a SPLADE head's weights of words."""
Head = Literal["pooled", "token_vectors", "bge_m3", "splade", "classification", "yes_no"]
"""What is made of the token states; `quadrate.runtime.graphs.heads` writes each."""
Activation = Literal["none", "sigmoid"]
"""What makes the relevance of a reranker's raw score."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is needed to serve a model right."""

    path: Path
    architecture: str
    encoder: Encoder
    max_tokens: int
    """The most tokens that are read of one input, special tokens included."""
    pooling: Pooling
    normalize: bool
    head: Head
    prompts: Mapping[str, str]
    default_prompt_name: str
    """Empty: no prompt unless a request names one."""
    labels: int = 1
    """Scores that a classification head gives."""
    answers: tuple[int, int] | None = None
    """The ids of the two tokens, yes and no, whose logits a causal reranker compares."""
    saturations: int = 1
    """How often SPLADE takes log(1 + x) of a token's positive logits."""
    after_pooling: tuple[Dense | LayerNorm, ...] = ()
    """The layers between the pooling and the normalisation, in order."""
    pair: PairLayout | None = None
    """How a query and a document are read as one; None for models that read texts alone."""
    has_pair_types: bool = True
    """Whether the tokens of a pair's second text have a token type of their own, where the model knows two."""
    activation: Activation = "none"
    """What makes the relevance of a reranker's raw score."""
    graph: str = ""
    """The folder's own ONNX graph that is run instead of ours, as a path in it. Empty: ours."""
    instruction_template: str = ""
    """The prompt of a query for which a request gives an instruction, with `{instruction}` in its place. Empty: the model takes none."""
