from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Batch(_message.Message):
    __slots__ = ("spool", "frames", "reason", "from_sequence", "from_link")
    SPOOL_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FROM_LINK_FIELD_NUMBER: _ClassVar[int]
    spool: bytes
    frames: bytes
    reason: str
    from_sequence: int
    from_link: bytes
    def __init__(self, spool: _Optional[bytes] = ..., frames: _Optional[bytes] = ..., reason: _Optional[str] = ..., from_sequence: _Optional[int] = ..., from_link: _Optional[bytes] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("spool", "sequence")
    SPOOL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    spool: bytes
    sequence: int
    def __init__(self, spool: _Optional[bytes] = ..., sequence: _Optional[int] = ...) -> None: ...

class KeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditKeys(_message.Message):
    __slots__ = ("sealing_key", "hash_key")
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    HASH_KEY_FIELD_NUMBER: _ClassVar[int]
    sealing_key: bytes
    hash_key: bytes
    def __init__(self, sealing_key: _Optional[bytes] = ..., hash_key: _Optional[bytes] = ...) -> None: ...
