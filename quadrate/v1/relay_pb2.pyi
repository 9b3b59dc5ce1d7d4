from quadrate.v1 import embed_pb2 as _embed_pb2
from quadrate.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BULK: Priority

class RelayRequest(_message.Message):
    __slots__ = ("requests", "cancelled_ids")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_IDS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RelayedRequest]
    cancelled_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, requests: _Optional[_Iterable[_Union[RelayedRequest, _Mapping]]] = ..., cancelled_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RelayedRequest(_message.Message):
    __slots__ = ("id", "embed", "timeout_seconds", "request_id", "traceparent", "tracestate", "baggage", "tenant", "priority", "weight")
    ID_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    BAGGAGE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    id: int
    embed: _embed_pb2.EmbedRequest
    timeout_seconds: float
    request_id: str
    traceparent: str
    tracestate: str
    baggage: str
    tenant: str
    priority: Priority
    weight: float
    def __init__(self, id: _Optional[int] = ..., embed: _Optional[_Union[_embed_pb2.EmbedRequest, _Mapping]] = ..., timeout_seconds: _Optional[float] = ..., request_id: _Optional[str] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ..., baggage: _Optional[str] = ..., tenant: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ..., weight: _Optional[float] = ...) -> None: ...

class RelayResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[RelayedResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[RelayedResponse, _Mapping]]] = ...) -> None: ...

class RelayedResponse(_message.Message):
    __slots__ = ("id", "embed", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    embed: _embed_pb2.EmbedResponse
    error: _options_pb2.Error
    def __init__(self, id: _Optional[int] = ..., embed: _Optional[_Union[_embed_pb2.EmbedResponse, _Mapping]] = ..., error: _Optional[_Union[_options_pb2.Error, _Mapping]] = ...) -> None: ...
