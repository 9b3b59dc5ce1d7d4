"""The families of encoders that can be served: each reads its sizes from config.json and writes itself into a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.encoders.bert import Bert
from quadrate.runtime.encoders.encoder import Encoder
from quadrate.runtime.encoders.modernbert import ModernBert
from quadrate.runtime.encoders.nomic_bert import NomicBert
from quadrate.runtime.encoders.qwen3 import Qwen3
from quadrate.runtime.encoders.roberta import Roberta
from quadrate.runtime.encoders.t5 import T5

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILIES: Mapping[str, type[Encoder]] = {
    "bert": Bert,
    "modernbert": ModernBert,
    "mt5": T5,
    "nomic_bert": NomicBert,
    "qwen3": Qwen3,
    "roberta": Roberta,
    "t5": T5,
    "xlm-roberta": Roberta,
}
"""By `model_type` of config.json."""

__all__ = ["FAMILIES", "Encoder"]
