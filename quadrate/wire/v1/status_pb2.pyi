from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusExtension(_message.Message):
    __slots__ = ("error", "message")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    error: ErrorBody
    message: str
    def __init__(self, error: _Optional[_Union[ErrorBody, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...

class ErrorBody(_message.Message):
    __slots__ = ("message", "type", "param", "code")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    message: str
    type: str
    param: _struct_pb2.Value
    code: _struct_pb2.Value
    def __init__(self, message: _Optional[str] = ..., type: _Optional[str] = ..., param: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., code: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...
