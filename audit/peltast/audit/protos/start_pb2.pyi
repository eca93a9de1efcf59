from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("statement", "signature")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    signature: bytes
    def __init__(self, statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class StartStatement(_message.Message):
    __slots__ = ("version", "id", "time_ns", "sealed_root", "key_id", "previous", "heads", "chain")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SEALED_ROOT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    version: int
    id: bytes
    time_ns: int
    sealed_root: bytes
    key_id: bytes
    previous: bytes
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    chain: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, version: _Optional[int] = ..., id: _Optional[bytes] = ..., time_ns: _Optional[int] = ..., sealed_root: _Optional[bytes] = ..., key_id: _Optional[bytes] = ..., previous: _Optional[bytes] = ..., heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., chain: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("spool", "sequence", "link")
    SPOOL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    spool: bytes
    sequence: int
    link: bytes
    def __init__(self, spool: _Optional[bytes] = ..., sequence: _Optional[int] = ..., link: _Optional[bytes] = ...) -> None: ...
