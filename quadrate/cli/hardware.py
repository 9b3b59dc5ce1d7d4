"""`quadrate check`: what this machine gives a worker to compute with, and what of it can be used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psutil

from quadrate.cores import usable_cores
from quadrate.runtime import gpus, processor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quadrate.runtime.gpus import Gpu, Gpus

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "bf16", "i8mm")
"""Those that decide how fast a model runs: x86's and ARM's."""
_ENGINES = ("onnxruntime", "onnxruntime-gpu", "openvino")


def run(*, as_json: bool) -> int:
    """Print what there is, and return 0: a machine without a GPU is no fault."""
    report = look()
    print(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))
    return 0


def look(found: Gpus | None = None) -> dict[str, Any]:
    """Return the report: processor, memory, engines, GPUs. `found` takes the place of the GPUs that are looked for."""
    cards = found or gpus.find()
    return {
        "processor": _processor(),
        "memory_bytes": psutil.virtual_memory().total,
        "engines": {name: version for name in _ENGINES if (version := _version(name))},
        "precisions": _precisions(),
        "driver": cards.driver,
        "gpus": [asdict(card) for card in cards.gpus],
        "no_gpu_because": cards.reason,
        "ways": _ways(cards.gpus),
    }


def _processor() -> dict[str, Any]:
    found = processor.instructions()
    return {
        "name": processor.name(),
        "usable_cores": usable_cores(),
        "instructions": [known for known in _INSTRUCTIONS if known in found],
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _precisions() -> dict[str, str]:
    """Return what would run a model in each class of precision; empty where the workers' packages are not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return {}
    from quadrate.runtime.sessions import given  # noqa: PLC0415 - needs them

    return {str(precision): answer for precision, answer in given().items()}


def _ways(cards: Sequence[Gpu]) -> list[list[str]]:
    """Return the matrix of ways between GPUs, by index."""
    return [["X" if one is other else one.links.get(other.index, "?") for other in cards] for one in cards]


def _lines(report: Mapping[str, Any]) -> list[str]:
    processor = report["processor"]
    lines = [
        f"Processor   {processor['name']}, {processor['usable_cores']} cores usable here",
        f"            {' '.join(processor['instructions']) or 'no instructions that speed a model up are known of it'}",
        f"Memory      {report['memory_bytes'] / 2**30:.0f} GiB",
        f"Engines     {', '.join(f'{name} {version}' for name, version in report['engines'].items()) or 'none installed'}",
    ]
    lines += [f"{'Precision' if not place else '':<12}{name}: {how}" for place, (name, how) in enumerate(report["precisions"].items())]
    if not report["gpus"]:
        return [*lines, f"GPUs        none: {report['no_gpu_because']}"]
    lines.append(f"GPUs        driver {report['driver']}")
    for card in report["gpus"]:
        lines += _card(card)
    return lines + (_matrix(report["ways"]) if len(report["gpus"]) > 1 else [])


def _card(card: Mapping[str, Any]) -> list[str]:
    memory = f"{card['used_bytes'] / 2**30:.1f} of {card['memory_bytes'] / 2**30:.1f} GiB used"
    joined = f", {card['pcie']}" if card["pcie"] else ""
    lines = [f"  gpu:{card['index']}     {card['name']}, {memory}{joined}, {card['uuid']}"]
    lines += [f"    slice   {part['name']}, {part['memory_bytes'] / 2**30:.1f} GiB, gpu:{part['uuid']}" for part in card["mig"]]
    if card["is_mig"] and not card["mig"]:
        lines.append("    MIG is on and has no slice, so nothing can run here: make one, or switch MIG off.")
    return lines


def _matrix(ways: Sequence[Sequence[str]]) -> list[str]:
    width = max(5, *(len(way) + 1 for row in ways for way in row))
    lines = ["  ways   " + "".join(f"{f'gpu:{index}':>{width + 1}}" for index in range(len(ways)))]
    lines += [f"  gpu:{index:<4} " + "".join(f"{way:>{width + 1}}" for way in row) for index, row in enumerate(ways)]
    seen = {"NV#" if way.startswith("NV") else way for row in ways for way in row}
    return [*lines, *(f"           {name}: {meaning}" for name, meaning in gpus.WAYS.items() if name in seen)]
