from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    NONE: _ClassVar[Truncation]
    LEFT: _ClassVar[Truncation]
    RIGHT: _ClassVar[Truncation]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    QUERY: _ClassVar[Role]
    DOCUMENT: _ClassVar[Role]

class Output(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_UNSPECIFIED: _ClassVar[Output]
    DENSE: _ClassVar[Output]
    SPARSE: _ClassVar[Output]
    MULTI_VECTOR: _ClassVar[Output]

class ValueType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VALUE_TYPE_UNSPECIFIED: _ClassVar[ValueType]
    FLOAT32: _ClassVar[ValueType]
    FLOAT16: _ClassVar[ValueType]
    INT8: _ClassVar[ValueType]
    UINT8: _ClassVar[ValueType]
    BINARY: _ClassVar[ValueType]
    UBINARY: _ClassVar[ValueType]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    EXACT: _ClassVar[Precision]
    FAST: _ClassVar[Precision]
    SMALL: _ClassVar[Precision]
TRUNCATION_UNSPECIFIED: Truncation
NONE: Truncation
LEFT: Truncation
RIGHT: Truncation
ROLE_UNSPECIFIED: Role
QUERY: Role
DOCUMENT: Role
OUTPUT_UNSPECIFIED: Output
DENSE: Output
SPARSE: Output
MULTI_VECTOR: Output
VALUE_TYPE_UNSPECIFIED: ValueType
FLOAT32: ValueType
FLOAT16: ValueType
INT8: ValueType
UINT8: ValueType
BINARY: ValueType
UBINARY: ValueType
PRECISION_UNSPECIFIED: Precision
EXACT: Precision
FAST: Precision
SMALL: Precision

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("tokens", "tokens_cut", "estimated")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_CUT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    tokens_cut: int
    estimated: bool
    def __init__(self, tokens: _Optional[int] = ..., tokens_cut: _Optional[int] = ..., estimated: _Optional[bool] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("revision", "prompt", "precision", "provider", "pooling", "normalized", "fingerprint")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    revision: str
    prompt: str
    precision: Precision
    provider: str
    pooling: str
    normalized: bool
    fingerprint: str
    def __init__(self, revision: _Optional[str] = ..., prompt: _Optional[str] = ..., precision: _Optional[_Union[Precision, str]] = ..., provider: _Optional[str] = ..., pooling: _Optional[str] = ..., normalized: _Optional[bool] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("tokenize_seconds", "queue_seconds", "inference_seconds", "total_seconds")
    TOKENIZE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    tokenize_seconds: float
    queue_seconds: float
    inference_seconds: float
    total_seconds: float
    def __init__(self, tokenize_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., inference_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "reason", "param", "retryable", "retry_after_seconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    param: str
    retryable: bool
    retry_after_seconds: float
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., param: _Optional[str] = ..., retryable: _Optional[bool] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...
