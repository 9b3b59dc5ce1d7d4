from google.api import annotations_pb2 as _annotations_pb2
from quadrate.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EmbedRequest(_message.Message):
    __slots__ = ("model", "inputs", "role", "prompt", "prompt_name", "truncation", "dimensions", "outputs", "value_type", "normalize", "instruction", "tokenizer_sha256")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    VALUE_TYPE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[_options_pb2.Input]
    role: _options_pb2.Role
    prompt: str
    prompt_name: str
    truncation: _options_pb2.Truncation
    dimensions: int
    outputs: _containers.RepeatedScalarFieldContainer[_options_pb2.Output]
    value_type: _options_pb2.ValueType
    normalize: bool
    instruction: str
    tokenizer_sha256: str
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_options_pb2.Input, _Mapping]]] = ..., role: _Optional[_Union[_options_pb2.Role, str]] = ..., prompt: _Optional[str] = ..., prompt_name: _Optional[str] = ..., truncation: _Optional[_Union[_options_pb2.Truncation, str]] = ..., dimensions: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_options_pb2.Output, str]]] = ..., value_type: _Optional[_Union[_options_pb2.ValueType, str]] = ..., normalize: _Optional[bool] = ..., instruction: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("model", "embeddings", "usage", "provenance", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    usage: _options_pb2.Usage
    provenance: _options_pb2.Provenance
    timings: _options_pb2.Timings
    def __init__(self, model: _Optional[str] = ..., embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., usage: _Optional[_Union[_options_pb2.Usage, _Mapping]] = ..., provenance: _Optional[_Union[_options_pb2.Provenance, _Mapping]] = ..., timings: _Optional[_Union[_options_pb2.Timings, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("index", "values", "packed_values", "sparse", "multi_vector", "usage")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PACKED_VALUES_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    MULTI_VECTOR_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    index: int
    values: _containers.RepeatedScalarFieldContainer[float]
    packed_values: bytes
    sparse: SparseVector
    multi_vector: MultiVector
    usage: _options_pb2.Usage
    def __init__(self, index: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., packed_values: _Optional[bytes] = ..., sparse: _Optional[_Union[SparseVector, _Mapping]] = ..., multi_vector: _Optional[_Union[MultiVector, _Mapping]] = ..., usage: _Optional[_Union[_options_pb2.Usage, _Mapping]] = ...) -> None: ...

class SparseVector(_message.Message):
    __slots__ = ("token_ids", "weights")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class MultiVector(_message.Message):
    __slots__ = ("rows", "width", "values", "packed_values")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PACKED_VALUES_FIELD_NUMBER: _ClassVar[int]
    rows: int
    width: int
    values: _containers.RepeatedScalarFieldContainer[float]
    packed_values: bytes
    def __init__(self, rows: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., packed_values: _Optional[bytes] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: EmbedRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[EmbedRequest, _Mapping]] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: EmbedResponse
    error: _options_pb2.Error
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[EmbedResponse, _Mapping]] = ..., error: _Optional[_Union[_options_pb2.Error, _Mapping]] = ...) -> None: ...
