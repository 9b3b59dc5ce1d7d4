from google.api import annotations_pb2 as _annotations_pb2
from quadrate.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RerankRequest(_message.Message):
    __slots__ = ("model", "query", "query_token_ids", "documents", "top_n", "return_documents", "max_tokens_per_doc", "truncation", "raw_scores", "instruction", "tokenizer_sha256")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    QUERY_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    RETURN_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_DOC_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    model: str
    query: str
    query_token_ids: _options_pb2.TokenIds
    documents: _containers.RepeatedCompositeFieldContainer[_options_pb2.Input]
    top_n: int
    return_documents: bool
    max_tokens_per_doc: int
    truncation: _options_pb2.Truncation
    raw_scores: bool
    instruction: str
    tokenizer_sha256: str
    def __init__(self, model: _Optional[str] = ..., query: _Optional[str] = ..., query_token_ids: _Optional[_Union[_options_pb2.TokenIds, _Mapping]] = ..., documents: _Optional[_Iterable[_Union[_options_pb2.Input, _Mapping]]] = ..., top_n: _Optional[int] = ..., return_documents: _Optional[bool] = ..., max_tokens_per_doc: _Optional[int] = ..., truncation: _Optional[_Union[_options_pb2.Truncation, str]] = ..., raw_scores: _Optional[bool] = ..., instruction: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("model", "results", "usage", "provenance", "timings", "warnings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    results: _containers.RepeatedCompositeFieldContainer[RerankResult]
    usage: _options_pb2.Usage
    provenance: _options_pb2.Provenance
    timings: _options_pb2.Timings
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., results: _Optional[_Iterable[_Union[RerankResult, _Mapping]]] = ..., usage: _Optional[_Union[_options_pb2.Usage, _Mapping]] = ..., provenance: _Optional[_Union[_options_pb2.Provenance, _Mapping]] = ..., timings: _Optional[_Union[_options_pb2.Timings, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class RerankResult(_message.Message):
    __slots__ = ("index", "relevance_score", "document", "usage")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_SCORE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    index: int
    relevance_score: float
    document: RerankedDocument
    usage: _options_pb2.Usage
    def __init__(self, index: _Optional[int] = ..., relevance_score: _Optional[float] = ..., document: _Optional[_Union[RerankedDocument, _Mapping]] = ..., usage: _Optional[_Union[_options_pb2.Usage, _Mapping]] = ...) -> None: ...

class RerankedDocument(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...
