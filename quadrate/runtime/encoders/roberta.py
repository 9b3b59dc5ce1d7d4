"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): BERT with other positions, without token types for pairs, with other heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

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
    """RoBERTa or XLM-R.

    Attributes:
        padding_id: The padding token. Rows of the position table begin to count after its own.
    """

    padding_id: int

    @classmethod
    def _positions_of(cls, config: JsonFile) -> dict[str, int]:
        rows, padding = config.integer("max_position_embeddings"), config.integer("pad_token_id", 1)
        left = rows - padding
        return {"max_positions": left - 1, "skipped_positions": padding, "position_rows": left, "padding_id": padding}

    def positions(self, packed: Packed) -> str:
        """See Bert. Tokens count from 1; a padding token, which a text may spell out, has 0 and is not counted."""
        to = packed.to
        padding = to.constant(np.array(self.padding_id, np.int32))
        is_counted = to.node("Cast", to.node("Not", to.node("Equal", packed.input("ids"), padding)), to=TensorProto.INT32)
        count = to.node("CumSum", is_counted, to.constant(np.array(0, np.int32)))  # [T], over all texts
        before = packed.pick(to.node("Sub", count, is_counted), "first")  # [B], what was counted before each text
        return to.node("Mul", to.node("Sub", count, to.node("Gather", before, packed.input("owner"))), is_counted)

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
