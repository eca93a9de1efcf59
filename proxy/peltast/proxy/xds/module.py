"""Our module in Envoy's configuration: filters by ECDS, access loggers, and what the listener leaves for them."""

from __future__ import annotations

import base64
import zlib
from typing import Any

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ConfigSource, ExtensionConfigSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.extensions.dynamic_modules.v3.dynamic_modules_pb2 import DynamicModuleConfig
from envoy.extensions.filters.http.dynamic_modules.v3.dynamic_modules_pb2 import DynamicModuleFilter
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import BytesValue

from xds.type.v3.typed_struct_pb2 import TypedStruct

__all__ = [
    "CONNECTION_PROGRAM",
    "KEYS",
    "PROGRAM",
    "REVOCATIONS",
    "access_log",
    "filter_by_ecds",
    "filter_config",
    "network_filter_by_ecds",
    "network_filter_config",
    "peer_filter_state",
    "plaintext_filter_state",
]

PROGRAM, KEYS, REVOCATIONS = "program", "keys", "revocations"
"""Names of the module's three HTTP filters, and of their ECDS resources."""

CONNECTION_PROGRAM = "connection-program"
"""Name of the ECDS resource of the module's network filter: the names of all types share one space."""

_FILTER_TYPE = "type.googleapis.com/" + DynamicModuleFilter.DESCRIPTOR.full_name
_NETWORK_FILTER_TYPE = (
    "type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter"
)
_ACCESS_LOG_TYPE = "type.googleapis.com/envoy.extensions.access_loggers.dynamic_modules.v3.DynamicModuleAccessLog"
_FILTER_STATE_TYPE = "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config"

_BYTES_TYPE = "type.googleapis.com/google.protobuf.BytesValue"
_STRING_TYPE = "type.googleapis.com/google.protobuf.StringValue"

_PEER_KEY = "peltast.dev.peer"
_PEER_FORMAT = "%DOWNSTREAM_PEER_URI_SAN%|%DOWNSTREAM_PEER_CERT_V_END(%s)%|%DOWNSTREAM_PEER_SERIAL%"


def filter_config(module: str, name: str, document: bytes) -> TypedExtensionConfig:
    """The ECDS resource by which the filter `name` gets its `document`."""
    config = DynamicModuleFilter(
        dynamic_module_config=DynamicModuleConfig(name=module, do_not_close=True), filter_name=name
    )
    config.filter_config.Pack(BytesValue(value=deflated(document)))
    resource = TypedExtensionConfig(name=name)
    resource.typed_config.Pack(config)
    return resource


def deflated(document: bytes) -> bytes:
    """A document as it travels (RFC 1950): ten thousand policies say much the same."""
    return zlib.compress(document)


def filter_by_ecds(name: str) -> HttpFilter:
    """The filter `name`, whose configuration comes by ECDS. Without one, requests fail closed: there is no default."""
    source = ExtensionConfigSource(config_source=_ads(), type_urls=[_FILTER_TYPE])
    # What the configuration of the others is for is done when it arrives; their streams would only cost time.
    return HttpFilter(name=name, config_discovery=source, disabled=name != PROGRAM)


def network_filter_config(module: str, document: bytes) -> TypedExtensionConfig:
    """The ECDS resource by which the network filter gets its program, `document`."""
    value = {
        "dynamic_module_config": {"name": module, "do_not_close": True},
        "filter_name": PROGRAM,
        "filter_config": {"@type": _BYTES_TYPE, "value": base64.b64encode(deflated(document)).decode()},
    }
    return TypedExtensionConfig(name=CONNECTION_PROGRAM, typed_config=_typed_struct(_NETWORK_FILTER_TYPE, value))


def network_filter_by_ecds() -> Filter:
    """The network filter, whose program comes by ECDS, too: a changed one drains no listener.

    Without one, connections are closed: there is no default.
    """
    source = ExtensionConfigSource(config_source=_ads(), type_urls=[_NETWORK_FILTER_TYPE])
    return Filter(name=CONNECTION_PROGRAM, config_discovery=source)


def access_log(module: str, name: str, config: str = "") -> AccessLog:
    """The access logger `name`, which `proxy/filter/src/access_log.rs` knows, and what it is told."""
    value: dict[str, Any] = {"dynamic_module_config": {"name": module, "do_not_close": True}, "logger_name": name}
    if config:
        value["logger_config"] = {"@type": _STRING_TYPE, "value": config}
    return AccessLog(name=f"peltast-{name}", typed_config=_typed_struct(_ACCESS_LOG_TYPE, value))


def peer_filter_state() -> Filter:
    """Leaves who the peer is in the connection's filter state, once its handshake is over."""
    return _filter_state("on_downstream_tls_handshake", _PEER_FORMAT)


def plaintext_filter_state() -> Filter:
    """Leaves there that nobody proved to be anybody: without this word the module takes no request without a peer."""
    return _filter_state("on_new_connection", "plaintext")


def _filter_state(when: str, text: str) -> Filter:
    entry = {
        "object_key": _PEER_KEY,
        "factory_key": "envoy.string",
        "format_string": {"text_format_source": {"inline_string": text}},
    }
    value = {when: [entry]}
    return Filter(name="envoy.filters.network.set_filter_state", typed_config=_typed_struct(_FILTER_STATE_TYPE, value))


def _ads() -> ConfigSource:
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version="V3")


def _typed_struct(type_url: str, value: dict[str, Any]) -> AnyMessage:
    """A message that xds-protos lacks, by its type's name."""
    struct = TypedStruct(type_url=type_url)
    struct.value.update(value)
    message = AnyMessage()
    message.Pack(struct, deterministic=True)  # a map's order would change the version
    return message
