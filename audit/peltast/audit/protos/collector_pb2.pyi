from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Batch(_message.Message):
    __slots__ = ("spool", "frames")
    SPOOL_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    spool: bytes
    frames: bytes
    def __init__(self, spool: _Optional[bytes] = ..., frames: _Optional[bytes] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("spool", "sequence")
    SPOOL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    spool: bytes
    sequence: int
    def __init__(self, spool: _Optional[bytes] = ..., sequence: _Optional[int] = ...) -> None: ...
