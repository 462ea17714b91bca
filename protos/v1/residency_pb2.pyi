import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
TIER_UNSPECIFIED: Tier
TIER_DISK: Tier
TIER_HOST: Tier
TIER_DEVICE: Tier

class ResidentAdapter(_message.Message):
    __slots__ = ("name", "digest", "kind", "tier", "pinned", "running_requests", "waiting_requests", "size_bytes", "last_use_time", "task")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_USE_TIME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    kind: str
    tier: Tier
    pinned: bool
    running_requests: int
    waiting_requests: int
    size_bytes: int
    last_use_time: _timestamp_pb2.Timestamp
    task: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., kind: _Optional[str] = ..., tier: _Optional[_Union[Tier, str]] = ..., pinned: _Optional[bool] = ..., running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., size_bytes: _Optional[int] = ..., last_use_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., task: _Optional[int] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("reference", "tier", "pin", "task")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    reference: str
    tier: Tier
    pin: bool
    task: int
    def __init__(self, reference: _Optional[str] = ..., tier: _Optional[_Union[Tier, str]] = ..., pin: _Optional[bool] = ..., task: _Optional[int] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("stage", "completed_bytes", "total_bytes", "adapter")
    class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STAGE_UNSPECIFIED: _ClassVar[LoadAdapterResponse.Stage]
        STAGE_RESOLVING: _ClassVar[LoadAdapterResponse.Stage]
        STAGE_DOWNLOADING: _ClassVar[LoadAdapterResponse.Stage]
        STAGE_VERIFYING: _ClassVar[LoadAdapterResponse.Stage]
        STAGE_LOADING: _ClassVar[LoadAdapterResponse.Stage]
        STAGE_READY: _ClassVar[LoadAdapterResponse.Stage]
    STAGE_UNSPECIFIED: LoadAdapterResponse.Stage
    STAGE_RESOLVING: LoadAdapterResponse.Stage
    STAGE_DOWNLOADING: LoadAdapterResponse.Stage
    STAGE_VERIFYING: LoadAdapterResponse.Stage
    STAGE_LOADING: LoadAdapterResponse.Stage
    STAGE_READY: LoadAdapterResponse.Stage
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    stage: LoadAdapterResponse.Stage
    completed_bytes: int
    total_bytes: int
    adapter: ResidentAdapter
    def __init__(self, stage: _Optional[_Union[LoadAdapterResponse.Stage, str]] = ..., completed_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., adapter: _Optional[_Union[ResidentAdapter, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("reference", "task")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    reference: str
    task: int
    def __init__(self, reference: _Optional[str] = ..., task: _Optional[int] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("found", "in_use")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    found: bool
    in_use: bool
    def __init__(self, found: _Optional[bool] = ..., in_use: _Optional[bool] = ...) -> None: ...

class ListResidentAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResidentAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[ResidentAdapter]
    def __init__(self, adapters: _Optional[_Iterable[_Union[ResidentAdapter, _Mapping]]] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("interval_ms",)
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    def __init__(self, interval_ms: _Optional[int] = ...) -> None: ...

class WatchStatusResponse(_message.Message):
    __slots__ = ("running_requests", "waiting_requests", "kv_cache_usage", "generation_tokens_per_second", "max_resident_adapters", "adapters")
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MAX_RESIDENT_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    running_requests: int
    waiting_requests: int
    kv_cache_usage: float
    generation_tokens_per_second: float
    max_resident_adapters: int
    adapters: _containers.RepeatedCompositeFieldContainer[ResidentAdapter]
    def __init__(self, running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., kv_cache_usage: _Optional[float] = ..., generation_tokens_per_second: _Optional[float] = ..., max_resident_adapters: _Optional[int] = ..., adapters: _Optional[_Iterable[_Union[ResidentAdapter, _Mapping]]] = ...) -> None: ...
