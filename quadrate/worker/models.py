"""The model service of a worker: the source of truth for its models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.inputs import MAX_INPUTS
from quadrate.runtime.scoring import SCORINGS, activation_of
from quadrate.v1 import model_pb2, options_pb2
from quadrate.worker.offer import offer
from quadrate.worker.reading import card_truncation, check_inputs, read, resolve_prompt, resolve_truncation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quadrate.runtime.engine import Model
    from quadrate.server import Call
    from quadrate.worker.catalogue import Catalogue, Entry

PIECE_BYTES = 2**20
_PRECISIONS = {"exact": options_pb2.EXACT, "fast": options_pb2.FAST, "small": options_pb2.SMALL}
_TASKS = {"embed": model_pb2.TASK_EMBED, "rerank": model_pb2.TASK_RERANK}


class ModelService:
    """Cards, token counts and tokenizers of a worker's models."""

    descriptor = model_pb2.DESCRIPTOR.services_by_name["ModelService"]

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def list_models(self, request: model_pb2.ListModelsRequest, call: Call) -> model_pb2.ListModelsResponse:
        """Return all cards, or those for one task, ordered by name."""
        call.log["model"] = ""
        cards = [describe(entry) for entry in self._catalogue.entries]
        return model_pb2.ListModelsResponse(models=[card for card in cards if request.task in (model_pb2.TASK_UNSPECIFIED, card.task)])

    async def get_model(self, request: model_pb2.GetModelRequest, call: Call) -> model_pb2.GetModelResponse:
        """Return one card. Raises ModelNotFound."""
        entry = self._catalogue.entry(request.model)
        call.log["model"] = entry.alias
        return model_pb2.GetModelResponse(model=describe(entry))

    async def tokenize(self, request: model_pb2.TokenizeRequest, call: Call) -> model_pb2.TokenizeResponse:
        """Return the ids that the model would read. Raises as embedding does."""
        model = self._catalogue.engine(request.model).model
        call.log.update(model=model.alias, inputs=len(request.inputs))
        check_inputs(request.inputs, names="inputs", limit=MAX_INPUTS)
        prompt = resolve_prompt(model, request)
        truncation = resolve_truncation(request.truncation, options_pb2.RIGHT)
        with call.trace.stage("tokenise"):
            readings = await read(request.inputs, model.tokenizer, names="inputs", prompt=prompt, truncation=truncation)
        answer = model_pb2.TokenizeResponse(model=request.model)
        for place, (ids, cut) in enumerate(zip(readings.ids, readings.cut, strict=True)):
            usage = options_pb2.Usage(tokens=len(ids), tokens_cut=cut)
            answer.tokenizations.add(index=place, ids=ids.tolist(), usage=usage)
        answer.usage.tokens, answer.usage.tokens_cut = readings.tokens, sum(readings.cut)
        call.log["tokens"] = readings.tokens
        return answer

    async def get_tokenizer(self, request: model_pb2.GetTokenizerRequest, call: Call) -> AsyncIterator[model_pb2.GetTokenizerResponse]:
        """Give a model's tokenizer.json in pieces. Raises ModelNotFound, Unavailable."""
        model = self._catalogue.engine(request.model).model
        call.log["model"] = model.alias
        source = model.tokenizer.source
        for start in range(0, len(source), PIECE_BYTES):
            yield model_pb2.GetTokenizerResponse(chunk=source[start : start + PIECE_BYTES])


def describe(entry: Entry) -> model_pb2.Model:
    """Return the card of a model. Before it is loaded, only what the catalogue says is known."""
    card = entry.card
    answer = model_pb2.Model(
        name=entry.alias,
        served_name=card.served_name,
        task=_TASKS[card.task],
        state=entry.state,
        state_reason=entry.reason,
        description=card.description,
        license=card.license,
        revision=card.revision or "",
    )
    if entry.progress is not None:
        answer.load_progress = entry.progress
    if entry.engine is not None:
        _add_facts(answer, entry.engine.model)
    return answer


def _add_facts(answer: model_pb2.Model, model: Model) -> None:
    facts, card = model.facts, model.card
    answer.revision = model.revision
    answer.fingerprint = model.fingerprint
    answer.architecture = facts.architecture
    answer.max_tokens = facts.max_tokens
    answer.pooling = pooling_name(model)
    answer.prompts.update(facts.prompts)
    answer.default_prompt_name = facts.default_prompt_name
    answer.truncation = card_truncation(model)
    answer.precision = precision_of(model)
    answer.provider = model.session.provider
    answer.tokenizer_sha256 = model.tokenizer.sha256
    answer.vocabulary_size = model.tokenizer.vocabulary_size
    answer.created = model.created
    answer.memory_mib = round(model.weight_bytes / 2**20)
    if card.task == "embed":
        given = offer(model)
        answer.outputs.extend(given.outputs)  # type: ignore[arg-type] # numbers of the enum
        if given.width:
            answer.dimensions = given.width
            answer.matryoshka_dimensions.extend(given.matryoshka)
            if given.matryoshka_from:
                answer.matryoshka_dimensions_from = given.matryoshka_from
            answer.normalized = given.normalized
        if "multi_vector" in model.forms:
            answer.multi_vector_dimensions = model.forms["multi_vector"].width
        answer.instruction_template = facts.instruction_template
    else:
        answer.activation = activation_of(SCORINGS[card.scoring or ""], facts)
        if facts.pair is not None:
            answer.pair.CopyFrom(facts.pair.message())


def precision_of(model: Model) -> options_pb2.Precision:
    """Return the class of arithmetic that a model runs in."""
    return _PRECISIONS[model.precision]


def pooling_name(model: Model) -> str:
    """Return how token states become a vector, or for rerankers how the score is made."""
    return model.card.scoring or model.facts.pooling
