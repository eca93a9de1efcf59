from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckRevision(_message.Message):
    __slots__ = ("workloads", "revocations")
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    workloads: _containers.RepeatedCompositeFieldContainer[CheckWorkload]
    revocations: bytes
    def __init__(self, workloads: _Optional[_Iterable[_Union[CheckWorkload, _Mapping]]] = ..., revocations: _Optional[bytes] = ...) -> None: ...

class CheckWorkload(_message.Message):
    __slots__ = ("principal", "address", "program", "keys")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    principal: str
    address: str
    program: bytes
    keys: bytes
    def __init__(self, principal: _Optional[str] = ..., address: _Optional[str] = ..., program: _Optional[bytes] = ..., keys: _Optional[bytes] = ...) -> None: ...
