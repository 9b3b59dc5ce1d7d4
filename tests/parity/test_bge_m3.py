"""bge-m3's three answers from one pass against their definition (Chen et al. 2024, and FlagEmbedding's BGEM3 model), on a tiny XLM-R."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.parity import folders, test_bert

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.runtime.packing import Reading

pytestmark = pytest.mark.parity

WIDTH = 64
OUTPUTS = ("unit", "sparse_weights", "multi_vector")


def make(path: Path, *, vector_width: int) -> tuple[Any, dict[str, Any]]:
    """Save a random model with both heads in torch files beside it; return encoder and heads."""
    import torch

    model = test_bert.make("xlm-roberta", "AutoModel")
    folders.save(model, path)
    heads = {"sparse_linear": torch.nn.Linear(WIDTH, 1), "colbert_linear": torch.nn.Linear(WIDTH, vector_width)}
    for seed, (name, head) in enumerate(heads.items()):
        torch.save(folders.shake(head, seed=seed).state_dict(), path / f"{name}.pt")
    return model, heads


@pytest.mark.parametrize("vector_width", [WIDTH, 24])
def test_the_three_answers_are_those_of_the_definition(tmp_path: Path, vector_width: int) -> None:
    """The first token's state of length one; relu of a weight for each token; each token's vector of length one; all in one run."""
    import torch

    model, heads = make(tmp_path, vector_width=vector_width)
    states = folders.states(model)

    def answers(text: Reading) -> dict[str, np.ndarray]:
        found = torch.from_numpy(states(text))
        with torch.inference_mode():
            weights = torch.relu(heads["sparse_linear"](found)).numpy()
            vectors = torch.nn.functional.normalize(heads["colbert_linear"](found), dim=-1).numpy()
        return {"unit": folders.unit(found[0].numpy()), "sparse_weights": weights, "multi_vector": vectors}

    texts = folders.readings()
    expected = [answers(text) for text in texts]
    shares = [float((answer["sparse_weights"] > 0).mean()) for answer in expected]
    assert 0.1 < np.mean(shares) < 0.9
    opened = folders.session(tmp_path, pooling="cls", head="bge_m3")
    together = opened.run(texts, OUTPUTS, wide=False)
    for output in OUTPUTS:
        largest = max(float(abs(answer[output]).max()) for answer in expected)
        for found, answer in zip(together[output], expected, strict=True):
            folders.assert_same(found, answer[output], largest)
        folders.compare(opened, output, texts[:5], lambda text, output=output: answers(text)[output])
