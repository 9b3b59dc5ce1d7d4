"""`modules.json`: what sentence-transformers does after the encoder, one module after another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quadrate.errors import ConfigError
from quadrate.runtime.graphs.after_pooling import Dense, LayerNorm
from quadrate.runtime.jsonfile import JsonFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from quadrate.runtime.folder.facts import Pooling

_LIBRARY = "sentence_transformers."
_ORDER = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
_KINDS = (*_ORDER, "MLMTransformer", "SpladePooling", "LogitScore")
_POOLING_FLAGS: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_POOLING_MODES: Mapping[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_ACTIVATIONS: Mapping[str, Literal["none", "tanh", "gelu", "relu", "silu"]] = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_SATURATIONS: Mapping[str, int] = {"relu": 1, "log1p_relu": 2}


@dataclass(frozen=True, slots=True)
class Module:
    """One entry: its kind, the last part of its class's name, and its folder."""

    kind: str
    folder: str


class Modules:
    """The modules of a folder; none where there is no `modules.json`.

    Raises ConfigError for a module that is not served, that needs code of its own, or that stands where it is not served.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path / "modules.json"
        self._entries = [self._module(entry) for entry in self._raw()]
        kinds = [module.kind for module in self._entries]
        self._check_order(kinds)
        self.normalizes = "Normalize" in kinds
        """Whether vectors get length one."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def folder(self, kind: str) -> str | None:
        """Return the folder of the module of a kind; None if there is none."""
        return next((module.folder for module in self._entries if module.kind == kind), None)

    @property
    def pooling(self) -> Pooling:
        """How token states become a vector. Raises ConfigError if that is not said, or is not served."""
        if self.folder("SpladePooling") is not None:
            return "splade"
        folder = self.folder("Pooling")
        if folder is None:
            raise ConfigError(f"{self._path}: no modules.json that names a pooling; set `pooling` and `normalize` in the model's card.")
        config = JsonFile(self._path / folder / "config.json", required=False)
        if config.data.get("include_prompt") is False:
            raise ConfigError(f"{config.path}: include_prompt is false; this version pools over prompts, too.")
        return _pooling(config)

    @property
    def saturations(self) -> int:
        """How often a SPLADE module takes log(1 + x). Raises ConfigError for one that is not served."""
        config = JsonFile(self._path / (self.folder("SpladePooling") or "") / "config.json")
        config.refuse_unless("pooling_strategy", "max")
        return config.choice("activation_function", _SATURATIONS, "relu")

    @property
    def after_pooling(self) -> tuple[Dense | LayerNorm, ...]:
        """The layers after the pooling. Raises ConfigError for one that is not served."""
        layers = [module for module in self._entries if module.kind in ("Dense", "LayerNorm")]
        return tuple(self._dense(module.folder) if module.kind == "Dense" else LayerNorm(module.folder) for module in layers)

    def _raw(self) -> list[Any]:
        if not self._file.is_file():
            return []
        try:
            entries = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self._file}: cannot be read; fetch the model again.") from error
        if not isinstance(entries, list):
            raise ConfigError(f"{self._file}: is no list; fetch the model again.")
        return entries

    def _module(self, entry: Any) -> Module:
        try:
            name, folder = str(entry["type"]), str(entry["path"]).rstrip("/")
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{self._file}: cannot be read; fetch the model again.") from error
        kind = name.rpartition(".")[2]
        if not name.startswith(_LIBRARY):
            raise ConfigError(f"{self._file}: has a module {name!r}, which is code of the model's own; this version runs none.")
        if kind not in _KINDS:
            raise ConfigError(f"{self._file}: has a module {kind!r}; this version serves {', '.join(_KINDS)}.")
        if "/" in folder or folder in (".", ".."):
            raise ConfigError(f"{self._file}: has a module in {folder!r}, which is no folder beside it; fetch the model again.")
        if kind.endswith("Transformer") and folder:
            raise ConfigError(
                f"{self._file}: its encoder lies in {folder}; move the files in there beside modules.json, and set path to ''."
            )
        return Module(kind, folder)

    def _check_order(self, kinds: list[str]) -> None:
        """Refuse modules in another order than the one that is served, or several of what there is one of."""
        if not kinds or kinds in (["MLMTransformer", "SpladePooling"], ["Transformer", "SpladePooling"], ["Transformer", "LogitScore"]):
            return
        places = [min(_ORDER.index(kind), 3) if kind in _ORDER else -1 for kind in kinds]
        places = [2 if kind == "LayerNorm" else place for kind, place in zip(kinds, places, strict=True)]
        once = all(kinds.count(kind) <= 1 for kind in ("Transformer", "Pooling", "Normalize"))
        if kinds[0] != "Transformer" or -1 in places or places != sorted(places) or not once:
            raise ConfigError(f"{self._file}: has the modules {', '.join(kinds)}; served are {', '.join(_ORDER)} in this order.")

    def _dense(self, folder: str) -> Dense:
        config = JsonFile(self._path / folder / "config.json")
        config.refuse_unless("module_input_name", "sentence_embedding")
        config.refuse_unless("module_output_name", "sentence_embedding")
        config.refuse_unless("use_residual", False)
        sizes = config.integer("in_features"), config.integer("out_features")
        activation = config.choice("activation_function", _ACTIVATIONS, "torch.nn.modules.activation.Tanh")
        return Dense(folder, *sizes, config.flag("bias", default=True), activation)


def _pooling(config: JsonFile) -> Pooling:
    """Read the flags of older folders, or the one word of newer ones."""
    mode = config.data.get("pooling_mode")
    if isinstance(mode, list) and len(mode) == 1:
        config.data["pooling_mode"] = mode[0]  # several would be laid side by side; one may stand in a list, too
    if mode is not None:
        return config.choice("pooling_mode", _POOLING_MODES)
    on = sorted(key for key, value in config.data.items() if key.startswith("pooling_mode_") and value is True)
    if len(on) != 1 or on[0] not in _POOLING_FLAGS:
        raise ConfigError(f"{config.path}: asks for {on or 'no pooling'}; this version serves one of {sorted(_POOLING_FLAGS)}.")
    return _POOLING_FLAGS[on[0]]
