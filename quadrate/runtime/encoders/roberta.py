"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): BERT with other positions, without token types for pairs, with other heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quadrate.runtime.encoders.bert import Bert
from quadrate.runtime.graphs import layers
from quadrate.runtime.graphs.writer import Writer

if TYPE_CHECKING:
    from quadrate.runtime.encoders.encoder import Vocabulary
    from quadrate.runtime.graphs.packed import Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Roberta(Bert):
    """RoBERTa or XLM-R."""

    @classmethod
    def skipped(cls, config: JsonFile) -> int:
        """See Bert. The table's rows up to the padding token's id hold no position."""
        return config.integer("pad_token_id", 1) + 1

    @property
    def reads_types(self) -> bool:
        """See Bert. The family's tokenizers tell none."""
        return False

    def classify(self, packed: Packed, weights: Weights, *, labels: int) -> str:
        """See Encoder. A layer with tanh on the first token, then the scores."""
        first = self.write(packed, weights, only="first")
        head = Writer(packed, weights, prefix="classifier.", epsilon=self.epsilon)
        inner = packed.to.node("Tanh", head.dense("dense", first, self.width, self.width))
        return head.dense("out_proj", inner, labels, self.width)

    def predict(self, packed: Packed, weights: Weights) -> Vocabulary:
        """See Encoder."""
        states = self.write(packed, weights, only=None)
        head = Writer(packed, weights, prefix="lm_head.", epsilon=self.epsilon)
        rows = layers.activation(packed.to, "gelu", head.dense("dense", states, self.width, self.width))
        return self.vocabulary(head, head.norm("layer_norm", rows, self.width), weights)
