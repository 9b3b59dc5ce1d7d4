from google.api import annotations_pb2 as _annotations_pb2
from quadrate.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_EMBED: _ClassVar[Task]
    TASK_RERANK: _ClassVar[Task]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_UNAVAILABLE: _ClassVar[ModelState]
    MODEL_STATE_DISABLED: _ClassVar[ModelState]
TASK_UNSPECIFIED: Task
TASK_EMBED: Task
TASK_RERANK: Task
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_UNAVAILABLE: ModelState
MODEL_STATE_DISABLED: ModelState

class Model(_message.Message):
    __slots__ = ("name", "served_name", "task", "state", "state_reason", "description", "revision", "architecture", "dimensions", "matryoshka_dimensions", "max_tokens", "pooling", "normalized", "prompts", "default_prompt_name", "truncation", "outputs", "precision", "provider", "license", "tokenizer_sha256", "vocabulary_size", "created", "pair", "instruction_template", "load_progress", "memory_mib", "activation", "fingerprint", "multi_vector_dimensions", "matryoshka_dimensions_from")
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MATRYOSHKA_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    LOAD_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MULTI_VECTOR_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MATRYOSHKA_DIMENSIONS_FROM_FIELD_NUMBER: _ClassVar[int]
    name: str
    served_name: str
    task: Task
    state: ModelState
    state_reason: str
    description: str
    revision: str
    architecture: str
    dimensions: int
    matryoshka_dimensions: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    pooling: str
    normalized: bool
    prompts: _containers.ScalarMap[str, str]
    default_prompt_name: str
    truncation: _options_pb2.Truncation
    outputs: _containers.RepeatedScalarFieldContainer[_options_pb2.Output]
    precision: _options_pb2.Precision
    provider: str
    license: str
    tokenizer_sha256: str
    vocabulary_size: int
    created: int
    pair: PairLayout
    instruction_template: str
    load_progress: float
    memory_mib: int
    activation: str
    fingerprint: str
    multi_vector_dimensions: int
    matryoshka_dimensions_from: int
    def __init__(self, name: _Optional[str] = ..., served_name: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., state: _Optional[_Union[ModelState, str]] = ..., state_reason: _Optional[str] = ..., description: _Optional[str] = ..., revision: _Optional[str] = ..., architecture: _Optional[str] = ..., dimensions: _Optional[int] = ..., matryoshka_dimensions: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., pooling: _Optional[str] = ..., normalized: _Optional[bool] = ..., prompts: _Optional[_Mapping[str, str]] = ..., default_prompt_name: _Optional[str] = ..., truncation: _Optional[_Union[_options_pb2.Truncation, str]] = ..., outputs: _Optional[_Iterable[_Union[_options_pb2.Output, str]]] = ..., precision: _Optional[_Union[_options_pb2.Precision, str]] = ..., provider: _Optional[str] = ..., license: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., created: _Optional[int] = ..., pair: _Optional[_Union[PairLayout, _Mapping]] = ..., instruction_template: _Optional[str] = ..., load_progress: _Optional[float] = ..., memory_mib: _Optional[int] = ..., activation: _Optional[str] = ..., fingerprint: _Optional[str] = ..., multi_vector_dimensions: _Optional[int] = ..., matryoshka_dimensions_from: _Optional[int] = ...) -> None: ...

class PairLayout(_message.Message):
    __slots__ = ("prefix_ids", "infix_ids", "suffix_ids", "query_template", "document_template", "instruction")
    PREFIX_IDS_FIELD_NUMBER: _ClassVar[int]
    INFIX_IDS_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_IDS_FIELD_NUMBER: _ClassVar[int]
    QUERY_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    prefix_ids: _containers.RepeatedScalarFieldContainer[int]
    infix_ids: _containers.RepeatedScalarFieldContainer[int]
    suffix_ids: _containers.RepeatedScalarFieldContainer[int]
    query_template: str
    document_template: str
    instruction: str
    def __init__(self, prefix_ids: _Optional[_Iterable[int]] = ..., infix_ids: _Optional[_Iterable[int]] = ..., suffix_ids: _Optional[_Iterable[int]] = ..., query_template: _Optional[str] = ..., document_template: _Optional[str] = ..., instruction: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, str]] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "inputs", "role", "prompt", "prompt_name", "truncation")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[_options_pb2.Input]
    role: _options_pb2.Role
    prompt: str
    prompt_name: str
    truncation: _options_pb2.Truncation
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_options_pb2.Input, _Mapping]]] = ..., role: _Optional[_Union[_options_pb2.Role, str]] = ..., prompt: _Optional[str] = ..., prompt_name: _Optional[str] = ..., truncation: _Optional[_Union[_options_pb2.Truncation, str]] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("model", "tokenizations", "usage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZATIONS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    tokenizations: _containers.RepeatedCompositeFieldContainer[Tokenization]
    usage: _options_pb2.Usage
    def __init__(self, model: _Optional[str] = ..., tokenizations: _Optional[_Iterable[_Union[Tokenization, _Mapping]]] = ..., usage: _Optional[_Union[_options_pb2.Usage, _Mapping]] = ...) -> None: ...

class Tokenization(_message.Message):
    __slots__ = ("index", "ids", "usage")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    index: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    usage: _options_pb2.Usage
    def __init__(self, index: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ..., usage: _Optional[_Union[_options_pb2.Usage, _Mapping]] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetTokenizerResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...
