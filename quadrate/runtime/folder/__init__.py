"""What a model folder says of itself, and what its card in `configs/models.yaml` adds or overrules.

The folder is laid out as on the hub: `config.json` (the architecture), `modules.json` with the folders that it names (how token states
become a vector), `sentence_bert_config.json` (the limit on tokens), `config_sentence_transformers.json` (prompts, a reranker's
activation), `tokenizer.json`, `tokenizer_config.json`, and weights. What cannot be served as its card demands is refused here, with the
reason.
"""

from quadrate.runtime.folder.facts import Activation, Facts, Head, Pooling
from quadrate.runtime.folder.reading import read
from quadrate.runtime.folder.tokens import tokenizer_source

__all__ = ["Activation", "Facts", "Head", "Pooling", "read", "tokenizer_source"]
