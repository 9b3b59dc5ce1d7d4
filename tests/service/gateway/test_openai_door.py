"""POST /v1/embeddings and GET /v1/models as the gateway serves them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
import orjson

from quadrate.openai.v1 import openai_pb2
from quadrate.testing.worker import fake_vector

if TYPE_CHECKING:
    from conftest import Door

    from quadrate.testing.worker import FakeWorker


async def test_one_text_gets_openais_shape(door: Door, worker: FakeWorker) -> None:
    """One text gets one embedding in exactly OpenAI's shape, under the model's name as sent, with the true count of tokens."""
    answer = await door.post(door.openai.CreateEmbedding, {"model": "fake/fake", "input": "hello world"})
    ids = list(worker.received[0].inputs[0].token_ids.ids)
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": answer["data"][0]["embedding"]}],
        "model": "fake/fake",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    assert np.array_equal(np.float32(answer["data"][0]["embedding"]), fake_vector(ids))
