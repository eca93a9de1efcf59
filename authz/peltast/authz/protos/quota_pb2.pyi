from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BorrowRequest(_message.Message):
    __slots__ = ("domain", "entries", "tokens", "returned")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    domain: str
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    tokens: int
    returned: _containers.RepeatedCompositeFieldContainer[Returned]
    def __init__(self, domain: _Optional[str] = ..., entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., tokens: _Optional[int] = ..., returned: _Optional[_Iterable[_Union[Returned, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Returned(_message.Message):
    __slots__ = ("lease", "unused")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    UNUSED_FIELD_NUMBER: _ClassVar[int]
    lease: str
    unused: int
    def __init__(self, lease: _Optional[str] = ..., unused: _Optional[int] = ...) -> None: ...

class BorrowResponse(_message.Message):
    __slots__ = ("lease", "tokens", "valid_milliseconds", "retry_after_milliseconds", "unlimited")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    VALID_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    UNLIMITED_FIELD_NUMBER: _ClassVar[int]
    lease: str
    tokens: int
    valid_milliseconds: int
    retry_after_milliseconds: int
    unlimited: bool
    def __init__(self, lease: _Optional[str] = ..., tokens: _Optional[int] = ..., valid_milliseconds: _Optional[int] = ..., retry_after_milliseconds: _Optional[int] = ..., unlimited: _Optional[bool] = ...) -> None: ...

class BorrowManyRequest(_message.Message):
    __slots__ = ("borrows",)
    BORROWS_FIELD_NUMBER: _ClassVar[int]
    borrows: _containers.RepeatedCompositeFieldContainer[PolicyBorrow]
    def __init__(self, borrows: _Optional[_Iterable[_Union[PolicyBorrow, _Mapping]]] = ...) -> None: ...

class PolicyBorrow(_message.Message):
    __slots__ = ("policy", "limit", "key", "tokens", "returned")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    policy: str
    limit: int
    key: bytes
    tokens: int
    returned: _containers.RepeatedCompositeFieldContainer[Returned]
    def __init__(self, policy: _Optional[str] = ..., limit: _Optional[int] = ..., key: _Optional[bytes] = ..., tokens: _Optional[int] = ..., returned: _Optional[_Iterable[_Union[Returned, _Mapping]]] = ...) -> None: ...

class BorrowManyResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[PolicyLent]
    def __init__(self, answers: _Optional[_Iterable[_Union[PolicyLent, _Mapping]]] = ...) -> None: ...

class PolicyLent(_message.Message):
    __slots__ = ("lent", "error")
    LENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    lent: BorrowResponse
    error: str
    def __init__(self, lent: _Optional[_Union[BorrowResponse, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...
