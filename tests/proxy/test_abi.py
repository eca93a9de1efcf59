"""The module's symbols against Envoy's, which resolves them late: a missing one would end it at the first request."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import peltast.proxy.sidecar.binary
from peltast.proxy.sidecar.binary import find_envoy

MODULE = Path(peltast.proxy.sidecar.binary.__file__).parent.parent / "libpeltast_filter.so"
CALLBACK, EVENT = "envoy_dynamic_module_callback_", "envoy_dynamic_module_on_"

# Envoy looks these up for every network filter, HTTP filter and access logger: a module that lacks one does not load.
NEEDED_EVENTS = {
    "program_init",
    "network_filter_config_new",
    "network_filter_config_destroy",
    "network_filter_new",
    "network_filter_destroy",
    "network_filter_new_connection",
    "network_filter_read",
    "network_filter_write",
    "network_filter_event",
    "network_filter_scheduled",
    "http_filter_config_new",
    "http_filter_config_destroy",
    "http_filter_new",
    "http_filter_destroy",
    "http_filter_request_headers",
    "http_filter_request_body",
    "http_filter_request_trailers",
    "http_filter_response_headers",
    "http_filter_response_body",
    "http_filter_response_trailers",
    "http_filter_stream_complete",
    "http_filter_scheduled",
    "http_filter_http_callout_done",
    "access_logger_config_new",
    "access_logger_config_destroy",
    "access_logger_new",
    "access_logger_destroy",
    "access_logger_log",
}


def dynamic_symbols(file: Path) -> dict[str, str]:
    """Dynamic symbols of an ELF file with their sections: `UND` is undefined."""
    readelf = shutil.which("readelf")
    assert readelf, "readelf (binutils) is needed to read symbols"
    command = [readelf, "--dyn-syms", "--wide", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    rows = [line.split() for line in output.splitlines()]
    # Num: Value Size Type Bind Vis Ndx Name
    return {row[7].partition("@")[0]: row[6] for row in rows if len(row) >= 8 and row[0].rstrip(":").isdigit()}


@pytest.fixture(scope="module")
def module() -> dict[str, str]:
    return dynamic_symbols(MODULE)


@pytest.fixture(scope="module")
def envoy() -> dict[str, str]:
    return dynamic_symbols(find_envoy().path)


def test_every_callback_that_the_module_needs_is_exported_by_envoy(
    module: dict[str, str], envoy: dict[str, str]
) -> None:
    needed = {name for name, section in module.items() if name.startswith(CALLBACK) and section == "UND"}
    offered = {name for name, section in envoy.items() if name.startswith(CALLBACK) and section != "UND"}
    assert len(needed) > 10, "the module calls back; if nothing is found, the symbols were not read"
    assert needed - offered == set()


def test_every_event_that_the_module_names_is_defined_in_it(module: dict[str, str]) -> None:
    events = {name: section for name, section in module.items() if name.startswith(EVENT)}
    assert {name for name, section in events.items() if section == "UND"} == set()
    assert {EVENT + name for name in NEEDED_EVENTS} - events.keys() == set()


def test_the_module_names_nothing_of_envoys_but_callbacks_and_events(module: dict[str, str]) -> None:
    ours = {name for name in module if name.startswith("envoy_")}
    assert {name for name in ours if not name.startswith((CALLBACK, EVENT))} == set()
