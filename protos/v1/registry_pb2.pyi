import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Grade(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRADE_UNSPECIFIED: _ClassVar[Grade]
    GRADE_OK: _ClassVar[Grade]
    GRADE_WARN: _ClassVar[Grade]
    GRADE_BAD: _ClassVar[Grade]
    GRADE_UNKNOWN: _ClassVar[Grade]
GRADE_UNSPECIFIED: Grade
GRADE_OK: Grade
GRADE_WARN: Grade
GRADE_BAD: Grade
GRADE_UNKNOWN: Grade

class Blob(_message.Message):
    __slots__ = ("digest", "size_bytes", "file_name")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size_bytes: int
    file_name: str
    def __init__(self, digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., file_name: _Optional[str] = ...) -> None: ...

class Referrer(_message.Message):
    __slots__ = ("digest", "artifact_type", "document", "annotations")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    artifact_type: str
    document: Blob
    annotations: _containers.ScalarMap[str, str]
    def __init__(self, digest: _Optional[str] = ..., artifact_type: _Optional[str] = ..., document: _Optional[_Union[Blob, _Mapping]] = ..., annotations: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Verification(_message.Message):
    __slots__ = ("mode", "threshold", "key_ids", "problem")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[Verification.Mode]
        MODE_OFF: _ClassVar[Verification.Mode]
        MODE_WARN: _ClassVar[Verification.Mode]
        MODE_REQUIRE: _ClassVar[Verification.Mode]
    MODE_UNSPECIFIED: Verification.Mode
    MODE_OFF: Verification.Mode
    MODE_WARN: Verification.Mode
    MODE_REQUIRE: Verification.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    mode: Verification.Mode
    threshold: int
    key_ids: _containers.RepeatedScalarFieldContainer[str]
    problem: str
    def __init__(self, mode: _Optional[_Union[Verification.Mode, str]] = ..., threshold: _Optional[int] = ..., key_ids: _Optional[_Iterable[str]] = ..., problem: _Optional[str] = ...) -> None: ...

class Parent(_message.Message):
    __slots__ = ("digest", "weight")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    weight: float
    def __init__(self, digest: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "digest", "tags", "kind", "base_model", "base_digest", "rank", "target_modules", "blobs", "annotations", "size_bytes", "parents", "recipe", "referrers", "approximation", "verification", "num_tasks")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    REFERRERS_FIELD_NUMBER: _ClassVar[int]
    APPROXIMATION_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    NUM_TASKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    base_model: str
    base_digest: str
    rank: int
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    annotations: _containers.ScalarMap[str, str]
    size_bytes: int
    parents: _containers.RepeatedCompositeFieldContainer[Parent]
    recipe: str
    referrers: _containers.RepeatedCompositeFieldContainer[Referrer]
    approximation: Approximation
    verification: Verification
    num_tasks: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ..., base_model: _Optional[str] = ..., base_digest: _Optional[str] = ..., rank: _Optional[int] = ..., target_modules: _Optional[_Iterable[str]] = ..., blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., annotations: _Optional[_Mapping[str, str]] = ..., size_bytes: _Optional[int] = ..., parents: _Optional[_Iterable[_Union[Parent, _Mapping]]] = ..., recipe: _Optional[str] = ..., referrers: _Optional[_Iterable[_Union[Referrer, _Mapping]]] = ..., approximation: _Optional[_Union[Approximation, _Mapping]] = ..., verification: _Optional[_Union[Verification, _Mapping]] = ..., num_tasks: _Optional[int] = ...) -> None: ...

class Approximation(_message.Message):
    __slots__ = ("rank", "energy", "least_energy", "least_linear")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    LEAST_ENERGY_FIELD_NUMBER: _ClassVar[int]
    LEAST_LINEAR_FIELD_NUMBER: _ClassVar[int]
    rank: int
    energy: float
    least_energy: float
    least_linear: str
    def __init__(self, rank: _Optional[int] = ..., energy: _Optional[float] = ..., least_energy: _Optional[float] = ..., least_linear: _Optional[str] = ...) -> None: ...

class CheckBlobsRequest(_message.Message):
    __slots__ = ("blobs",)
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    def __init__(self, blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ...) -> None: ...

class CheckBlobsResponse(_message.Message):
    __slots__ = ("missing_digests",)
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    missing_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, missing_digests: _Optional[_Iterable[str]] = ...) -> None: ...

class UploadBlobRequest(_message.Message):
    __slots__ = ("blob", "data", "offset")
    BLOB_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    blob: Blob
    data: bytes
    offset: int
    def __init__(self, blob: _Optional[_Union[Blob, _Mapping]] = ..., data: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class UploadBlobResponse(_message.Message):
    __slots__ = ("digest", "committed_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    committed_bytes: int
    def __init__(self, digest: _Optional[str] = ..., committed_bytes: _Optional[int] = ...) -> None: ...

class DownloadBlobRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadBlobResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class PublishAdapterRequest(_message.Message):
    __slots__ = ("name", "tags", "blobs", "annotations", "validate_only", "approximate_rank")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    APPROXIMATE_RANK_FIELD_NUMBER: _ClassVar[int]
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    annotations: _containers.ScalarMap[str, str]
    validate_only: bool
    approximate_rank: int
    def __init__(self, name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., annotations: _Optional[_Mapping[str, str]] = ..., validate_only: _Optional[bool] = ..., approximate_rank: _Optional[int] = ...) -> None: ...

class PublishAdapterResponse(_message.Message):
    __slots__ = ("adapter", "created", "diagnosis")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSIS_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    created: bool
    diagnosis: Diagnosis
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., created: _Optional[bool] = ..., diagnosis: _Optional[_Union[Diagnosis, _Mapping]] = ...) -> None: ...

class AdoptAdapterRequest(_message.Message):
    __slots__ = ("name", "tags", "manifest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    manifest: bytes
    def __init__(self, name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., manifest: _Optional[bytes] = ...) -> None: ...

class AdoptAdapterResponse(_message.Message):
    __slots__ = ("adapter", "created")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    created: bool
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., created: _Optional[bool] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class GetAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "name_contains", "kind")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_CONTAINS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    name_contains: str
    kind: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., name_contains: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateTagRequest(_message.Message):
    __slots__ = ("name", "tag", "digest", "expected_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    tag: str
    digest: str
    expected_digest: str
    def __init__(self, name: _Optional[str] = ..., tag: _Optional[str] = ..., digest: _Optional[str] = ..., expected_digest: _Optional[str] = ...) -> None: ...

class UpdateTagResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class DeleteTagRequest(_message.Message):
    __slots__ = ("name", "tag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    tag: str
    def __init__(self, name: _Optional[str] = ..., tag: _Optional[str] = ...) -> None: ...

class DeleteTagResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MergeAdaptersRequest(_message.Message):
    __slots__ = ("sources", "method", "parameters", "name", "tags")
    class Source(_message.Message):
        __slots__ = ("reference", "weight", "task")
        REFERENCE_FIELD_NUMBER: _ClassVar[int]
        WEIGHT_FIELD_NUMBER: _ClassVar[int]
        TASK_FIELD_NUMBER: _ClassVar[int]
        reference: str
        weight: float
        task: int
        def __init__(self, reference: _Optional[str] = ..., weight: _Optional[float] = ..., task: _Optional[int] = ...) -> None: ...
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedCompositeFieldContainer[MergeAdaptersRequest.Source]
    method: str
    parameters: _containers.ScalarMap[str, str]
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sources: _Optional[_Iterable[_Union[MergeAdaptersRequest.Source, _Mapping]]] = ..., method: _Optional[str] = ..., parameters: _Optional[_Mapping[str, str]] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class MergeAdaptersResponse(_message.Message):
    __slots__ = ("adapter", "energy_kept")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ENERGY_KEPT_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    energy_kept: float
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., energy_kept: _Optional[float] = ...) -> None: ...

class LinearDiagnosis(_message.Message):
    __slots__ = ("layer", "target", "rank", "scale", "relative_norm", "relative_largest", "strength", "stable_rank", "predicted", "exact", "resemblance", "nf4_kept", "is_finite", "is_dead", "note")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_NORM_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_LARGEST_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    STABLE_RANK_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    RESEMBLANCE_FIELD_NUMBER: _ClassVar[int]
    NF4_KEPT_FIELD_NUMBER: _ClassVar[int]
    IS_FINITE_FIELD_NUMBER: _ClassVar[int]
    IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    layer: int
    target: str
    rank: int
    scale: float
    relative_norm: float
    relative_largest: float
    strength: float
    stable_rank: float
    predicted: int
    exact: int
    resemblance: float
    nf4_kept: float
    is_finite: bool
    is_dead: bool
    note: str
    def __init__(self, layer: _Optional[int] = ..., target: _Optional[str] = ..., rank: _Optional[int] = ..., scale: _Optional[float] = ..., relative_norm: _Optional[float] = ..., relative_largest: _Optional[float] = ..., strength: _Optional[float] = ..., stable_rank: _Optional[float] = ..., predicted: _Optional[int] = ..., exact: _Optional[int] = ..., resemblance: _Optional[float] = ..., nf4_kept: _Optional[float] = ..., is_finite: _Optional[bool] = ..., is_dead: _Optional[bool] = ..., note: _Optional[str] = ...) -> None: ...

class Diagnosis(_message.Message):
    __slots__ = ("grade", "headline", "advice", "exact", "intruders", "affected_share", "strength", "linears")
    GRADE_FIELD_NUMBER: _ClassVar[int]
    HEADLINE_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    INTRUDERS_FIELD_NUMBER: _ClassVar[int]
    AFFECTED_SHARE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    LINEARS_FIELD_NUMBER: _ClassVar[int]
    grade: Grade
    headline: str
    advice: _containers.RepeatedScalarFieldContainer[str]
    exact: bool
    intruders: int
    affected_share: float
    strength: float
    linears: _containers.RepeatedCompositeFieldContainer[LinearDiagnosis]
    def __init__(self, grade: _Optional[_Union[Grade, str]] = ..., headline: _Optional[str] = ..., advice: _Optional[_Iterable[str]] = ..., exact: _Optional[bool] = ..., intruders: _Optional[int] = ..., affected_share: _Optional[float] = ..., strength: _Optional[float] = ..., linears: _Optional[_Iterable[_Union[LinearDiagnosis, _Mapping]]] = ...) -> None: ...

class DiagnoseAdapterRequest(_message.Message):
    __slots__ = ("reference", "blobs", "exact", "approximate_rank")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    APPROXIMATE_RANK_FIELD_NUMBER: _ClassVar[int]
    reference: str
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    exact: bool
    approximate_rank: int
    def __init__(self, reference: _Optional[str] = ..., blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., exact: _Optional[bool] = ..., approximate_rank: _Optional[int] = ...) -> None: ...

class DiagnoseAdapterResponse(_message.Message):
    __slots__ = ("diagnosis", "referrer", "not_kept")
    DIAGNOSIS_FIELD_NUMBER: _ClassVar[int]
    REFERRER_FIELD_NUMBER: _ClassVar[int]
    NOT_KEPT_FIELD_NUMBER: _ClassVar[int]
    diagnosis: Diagnosis
    referrer: Referrer
    not_kept: str
    def __init__(self, diagnosis: _Optional[_Union[Diagnosis, _Mapping]] = ..., referrer: _Optional[_Union[Referrer, _Mapping]] = ..., not_kept: _Optional[str] = ...) -> None: ...

class MitigateAdapterRequest(_message.Message):
    __slots__ = ("reference", "keep", "name", "tags")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    keep: float
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reference: _Optional[str] = ..., keep: _Optional[float] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class MitigateAdapterResponse(_message.Message):
    __slots__ = ("adapter", "diagnosis", "shrunk", "energy_kept")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSIS_FIELD_NUMBER: _ClassVar[int]
    SHRUNK_FIELD_NUMBER: _ClassVar[int]
    ENERGY_KEPT_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    diagnosis: Diagnosis
    shrunk: int
    energy_kept: float
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., diagnosis: _Optional[_Union[Diagnosis, _Mapping]] = ..., shrunk: _Optional[int] = ..., energy_kept: _Optional[float] = ...) -> None: ...

class GetLineageRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class GetLineageResponse(_message.Message):
    __slots__ = ("adapter", "ancestors", "missing_digests", "children")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ANCESTORS_FIELD_NUMBER: _ClassVar[int]
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    ancestors: _containers.RepeatedCompositeFieldContainer[Adapter]
    missing_digests: _containers.RepeatedScalarFieldContainer[str]
    children: _containers.RepeatedCompositeFieldContainer[Adapter]
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., ancestors: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., missing_digests: _Optional[_Iterable[str]] = ..., children: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ...) -> None: ...

class CompareAdaptersRequest(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: str
    second: str
    def __init__(self, first: _Optional[str] = ..., second: _Optional[str] = ...) -> None: ...

class FieldDifference(_message.Message):
    __slots__ = ("field", "first", "second")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    field: str
    first: str
    second: str
    def __init__(self, field: _Optional[str] = ..., first: _Optional[str] = ..., second: _Optional[str] = ...) -> None: ...

class LinearDifference(_message.Message):
    __slots__ = ("layer", "target", "first_norm", "second_norm", "cosine", "distance")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FIRST_NORM_FIELD_NUMBER: _ClassVar[int]
    SECOND_NORM_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    layer: int
    target: str
    first_norm: float
    second_norm: float
    cosine: float
    distance: float
    def __init__(self, layer: _Optional[int] = ..., target: _Optional[str] = ..., first_norm: _Optional[float] = ..., second_norm: _Optional[float] = ..., cosine: _Optional[float] = ..., distance: _Optional[float] = ...) -> None: ...

class CompareAdaptersResponse(_message.Message):
    __slots__ = ("first", "second", "fields", "linears", "cosine", "distance", "others")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    LINEARS_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    first: Adapter
    second: Adapter
    fields: _containers.RepeatedCompositeFieldContainer[FieldDifference]
    linears: _containers.RepeatedCompositeFieldContainer[LinearDifference]
    cosine: float
    distance: float
    others: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, first: _Optional[_Union[Adapter, _Mapping]] = ..., second: _Optional[_Union[Adapter, _Mapping]] = ..., fields: _Optional[_Iterable[_Union[FieldDifference, _Mapping]]] = ..., linears: _Optional[_Iterable[_Union[LinearDifference, _Mapping]]] = ..., cosine: _Optional[float] = ..., distance: _Optional[float] = ..., others: _Optional[_Iterable[str]] = ...) -> None: ...

class RollBackTagRequest(_message.Message):
    __slots__ = ("name", "tag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    tag: str
    def __init__(self, name: _Optional[str] = ..., tag: _Optional[str] = ...) -> None: ...

class RollBackTagResponse(_message.Message):
    __slots__ = ("adapter", "previous_digest")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    previous_digest: str
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., previous_digest: _Optional[str] = ...) -> None: ...

class ListTagMovesRequest(_message.Message):
    __slots__ = ("name", "tag", "limit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    tag: str
    limit: int
    def __init__(self, name: _Optional[str] = ..., tag: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class TagMove(_message.Message):
    __slots__ = ("id", "time", "tag", "old_digest", "new_digest")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    OLD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NEW_DIGEST_FIELD_NUMBER: _ClassVar[int]
    id: int
    time: _timestamp_pb2.Timestamp
    tag: str
    old_digest: str
    new_digest: str
    def __init__(self, id: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tag: _Optional[str] = ..., old_digest: _Optional[str] = ..., new_digest: _Optional[str] = ...) -> None: ...

class ListTagMovesResponse(_message.Message):
    __slots__ = ("moves",)
    MOVES_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[TagMove]
    def __init__(self, moves: _Optional[_Iterable[_Union[TagMove, _Mapping]]] = ...) -> None: ...

class CreateViewRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class CreateViewResponse(_message.Message):
    __slots__ = ("adapter", "path")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    path: str
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., path: _Optional[str] = ...) -> None: ...

class DeleteViewRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class DeleteViewResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: bool
    def __init__(self, deleted: _Optional[bool] = ...) -> None: ...

class AttachReferrerRequest(_message.Message):
    __slots__ = ("reference", "artifact_type", "file_name", "document", "annotations")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_TYPE_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    artifact_type: str
    file_name: str
    document: bytes
    annotations: _containers.ScalarMap[str, str]
    def __init__(self, reference: _Optional[str] = ..., artifact_type: _Optional[str] = ..., file_name: _Optional[str] = ..., document: _Optional[bytes] = ..., annotations: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AttachReferrerResponse(_message.Message):
    __slots__ = ("referrer", "subject")
    REFERRER_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    referrer: Referrer
    subject: str
    def __init__(self, referrer: _Optional[_Union[Referrer, _Mapping]] = ..., subject: _Optional[str] = ...) -> None: ...

class AdoptReferrerRequest(_message.Message):
    __slots__ = ("manifest", "document")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    document: bytes
    def __init__(self, manifest: _Optional[bytes] = ..., document: _Optional[bytes] = ...) -> None: ...

class AdoptReferrerResponse(_message.Message):
    __slots__ = ("referrer", "subject")
    REFERRER_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    referrer: Referrer
    subject: str
    def __init__(self, referrer: _Optional[_Union[Referrer, _Mapping]] = ..., subject: _Optional[str] = ...) -> None: ...

class TransferProgress(_message.Message):
    __slots__ = ("file_name", "digest", "completed_bytes", "total_bytes")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    digest: str
    completed_bytes: int
    total_bytes: int
    def __init__(self, file_name: _Optional[str] = ..., digest: _Optional[str] = ..., completed_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class PushAdapterRequest(_message.Message):
    __slots__ = ("reference", "remote", "name", "tags", "expected_digest")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    reference: str
    remote: str
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    expected_digest: str
    def __init__(self, reference: _Optional[str] = ..., remote: _Optional[str] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., expected_digest: _Optional[str] = ...) -> None: ...

class PushAdapterResponse(_message.Message):
    __slots__ = ("progress", "adapter")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    progress: TransferProgress
    adapter: Adapter
    def __init__(self, progress: _Optional[_Union[TransferProgress, _Mapping]] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class PullAdapterRequest(_message.Message):
    __slots__ = ("remote", "reference", "name", "tags", "all_tags")
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    ALL_TAGS_FIELD_NUMBER: _ClassVar[int]
    remote: str
    reference: str
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    all_tags: bool
    def __init__(self, remote: _Optional[str] = ..., reference: _Optional[str] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., all_tags: _Optional[bool] = ...) -> None: ...

class PullAdapterResponse(_message.Message):
    __slots__ = ("progress", "adapter", "created")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    progress: TransferProgress
    adapter: Adapter
    created: bool
    def __init__(self, progress: _Optional[_Union[TransferProgress, _Mapping]] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ..., created: _Optional[bool] = ...) -> None: ...

class CollectGarbageRequest(_message.Message):
    __slots__ = ("dry_run", "grace_seconds")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    grace_seconds: float
    def __init__(self, dry_run: _Optional[bool] = ..., grace_seconds: _Optional[float] = ...) -> None: ...

class CollectGarbageResponse(_message.Message):
    __slots__ = ("removed_blobs", "removed_bytes", "adapters", "documents", "emptied_blobs", "emptied_bytes", "discarded_files", "discarded_bytes")
    class CollectedAdapter(_message.Message):
        __slots__ = ("name", "digest")
        NAME_FIELD_NUMBER: _ClassVar[int]
        DIGEST_FIELD_NUMBER: _ClassVar[int]
        name: str
        digest: str
        def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...
    REMOVED_BLOBS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    EMPTIED_BLOBS_FIELD_NUMBER: _ClassVar[int]
    EMPTIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FILES_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_BYTES_FIELD_NUMBER: _ClassVar[int]
    removed_blobs: int
    removed_bytes: int
    adapters: _containers.RepeatedCompositeFieldContainer[CollectGarbageResponse.CollectedAdapter]
    documents: int
    emptied_blobs: int
    emptied_bytes: int
    discarded_files: int
    discarded_bytes: int
    def __init__(self, removed_blobs: _Optional[int] = ..., removed_bytes: _Optional[int] = ..., adapters: _Optional[_Iterable[_Union[CollectGarbageResponse.CollectedAdapter, _Mapping]]] = ..., documents: _Optional[int] = ..., emptied_blobs: _Optional[int] = ..., emptied_bytes: _Optional[int] = ..., discarded_files: _Optional[int] = ..., discarded_bytes: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("holder", "digest", "expire_time")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    holder: str
    digest: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, holder: _Optional[str] = ..., digest: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class LeaseAdapterRequest(_message.Message):
    __slots__ = ("reference", "holder", "ttl_seconds")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    holder: str
    ttl_seconds: float
    def __init__(self, reference: _Optional[str] = ..., holder: _Optional[str] = ..., ttl_seconds: _Optional[float] = ...) -> None: ...

class LeaseAdapterResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ("holder", "reference")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    holder: str
    reference: str
    def __init__(self, holder: _Optional[str] = ..., reference: _Optional[str] = ...) -> None: ...

class ReleaseLeaseResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: int
    def __init__(self, released: _Optional[int] = ...) -> None: ...

class ListLeasesRequest(_message.Message):
    __slots__ = ("holder",)
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    holder: str
    def __init__(self, holder: _Optional[str] = ...) -> None: ...

class ListLeasesResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    def __init__(self, leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ...) -> None: ...

class CheckStoreRequest(_message.Message):
    __slots__ = ("heal",)
    HEAL_FIELD_NUMBER: _ClassVar[int]
    heal: bool
    def __init__(self, heal: _Optional[bool] = ...) -> None: ...

class CheckStoreResponse(_message.Message):
    __slots__ = ("checked_blobs", "checked_bytes", "total_blobs", "total_bytes", "report")
    CHECKED_BLOBS_FIELD_NUMBER: _ClassVar[int]
    CHECKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOBS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    checked_blobs: int
    checked_bytes: int
    total_blobs: int
    total_bytes: int
    report: StoreReport
    def __init__(self, checked_blobs: _Optional[int] = ..., checked_bytes: _Optional[int] = ..., total_blobs: _Optional[int] = ..., total_bytes: _Optional[int] = ..., report: _Optional[_Union[StoreReport, _Mapping]] = ...) -> None: ...

class StoreReport(_message.Message):
    __slots__ = ("blobs", "blob_bytes", "corrupt_digests", "missing_digests", "healed_digests", "quarantined_files", "quarantined_bytes", "only_damaged_digests")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    HEALED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FILES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ONLY_DAMAGED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    blobs: int
    blob_bytes: int
    corrupt_digests: _containers.RepeatedScalarFieldContainer[str]
    missing_digests: _containers.RepeatedScalarFieldContainer[str]
    healed_digests: _containers.RepeatedScalarFieldContainer[str]
    quarantined_files: int
    quarantined_bytes: int
    only_damaged_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blobs: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., corrupt_digests: _Optional[_Iterable[str]] = ..., missing_digests: _Optional[_Iterable[str]] = ..., healed_digests: _Optional[_Iterable[str]] = ..., quarantined_files: _Optional[int] = ..., quarantined_bytes: _Optional[int] = ..., only_damaged_digests: _Optional[_Iterable[str]] = ...) -> None: ...
