"""A control plane's end of the operators' socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from support.acts import Record

from peltast.cli.operator_acts import operator_acts_handler
from peltast.cli.settings import operator_socket
from peltast.identity.files import make_private_folder


@pytest.fixture
async def record(state: Path) -> AsyncIterator[Record]:
    record = Record()
    make_private_folder(state)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((operator_acts_handler(record.report),))
    server.add_insecure_port(f"unix:{operator_socket(state)}")
    await server.start()
    yield record
    await server.stop(grace=None)
