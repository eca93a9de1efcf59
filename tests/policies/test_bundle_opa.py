"""Bundles that the real `opa` builds and signs are read and verified; both refuse the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.bundles import SECRET, signed, targz
from support.opa import opa

from peltast.policies.sources.archive import unpack
from peltast.policies.sources.bundle import read_bundle
from peltast.policies.sources.bundle_signature import Verification, VerificationKey

MODULE = "package app.rules\n\nallow if data.app.users[input.parsed_path[0]]\n"
DATA = """{"z": 1, "app": {"users": {"ada": true}, "numbers": [1.50, 1e3, -0.0, 12345678901234567890123, 1E-7, 0.1],
 "\u00e9<&>\\u2028\u2029": "\\u0001\\n\\"\\\\/\\b\\f\\u007f", "\U0001f6e1": [null, {}, []]}}"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder that is no bundle yet, beside keys to sign it by."""
    folder = tmp_path / "src"
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "rules.rego").write_text(MODULE)
    (folder / "data.json").write_text(DATA)
    (folder / ".manifest").write_text('{"roots": ["app", "z"], "revision": "r7", "metadata": {"share": 0.50}}')
    return tmp_path


def keys(algorithm: str, folder: Path) -> tuple[str, str]:
    """What signs (for the command line), and what verifies."""
    if algorithm == "HS256":
        return SECRET, SECRET
    key: Any = (
        rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    )
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return "key.pem", public.decode()


def verification(algorithm: str, public: str, scope: str = "") -> Verification:
    return Verification((VerificationKey("default", algorithm, public),), "default", scope)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "HS256"])
def test_a_bundle_that_opa_builds_and_signs_is_verified(source: Path, algorithm: str) -> None:
    private, public = keys(algorithm, source)
    built = opa(
        "build", "-b", "src", "-o", "b.tar.gz", "--signing-key", private, "--signing-alg", algorithm, folder=source
    )
    assert built.returncode == 0, built.stderr
    files = unpack((source / "b.tar.gz").read_bytes())
    bundle = read_bundle(files, verification(algorithm, public))
    assert (bundle.revision, bundle.roots) == ("r7", (("app",), ("z",)))
    assert (list(bundle.modules.values()), bundle.data) == ([MODULE], json.loads(DATA))
    for name in files:
        changed = {**files, name: files[name].replace(b"1", b"2").replace(b"allow", b"admit").replace(b"r7", b"r8")}
        with pytest.raises(ValueError, match=re.escape(name)):
            read_bundle(changed, verification(algorithm, public))


def test_a_folder_that_opa_signs_is_verified_with_its_scope(source: Path) -> None:
    private, public = keys("RS256", source)
    (source / "claims.json").write_text('{"scope": "write"}')
    made = opa(
        "sign",
        "--signing-key",
        f"../{private}",
        "--claims-file",
        "../claims.json",
        "--bundle",
        ".",
        folder=source / "src",
    )
    assert made.returncode == 0, made.stderr
    folder = source / "src"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert read_bundle(files, verification("RS256", public, "write")).data == json.loads(DATA)
    with pytest.raises(ValueError, match="scope"):
        read_bundle(files, verification("RS256", public))


PLAIN = {"app/rules.rego": MODULE.encode(), "data.json": b'{"app":{"users":{"ada":true}}}'}


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        pytest.param(signed(PLAIN, kid="default"), True, id="as it was signed"),
        pytest.param({**signed(PLAIN, kid="default"), "data.json": b"{}"}, False, id="other data"),
        pytest.param({**signed(PLAIN, kid="default"), "more.rego": b"package more"}, False, id="one file more"),
        pytest.param({k: v for k, v in signed(PLAIN, kid="default").items() if k != "data.json"}, False, id="one less"),
        pytest.param(signed(PLAIN, key=SECRET + "!"), False, id="another key"),
        pytest.param(signed(PLAIN, kid="default", scope="x"), False, id="another scope"),
        pytest.param(PLAIN, False, id="not signed"),
    ],
)
def test_opa_and_peltast_take_the_same_signatures(tmp_path: Path, files: Mapping[str, bytes], *, taken: bool) -> None:
    (tmp_path / "b.tar.gz").write_bytes(targz(files))
    command = [
        "build",
        "-b",
        "b.tar.gz",
        "--signing-key",
        SECRET,
        "--signing-alg",
        "HS256",
        "--verification-key",
        SECRET,
    ]
    assert (opa(*command, "-o", "out.tar.gz", folder=tmp_path).returncode == 0) == taken
    if taken:
        read_bundle(files, verification("HS256", SECRET))
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - test_bundle.py looks at what it says
            read_bundle(files, verification("HS256", SECRET))


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        pytest.param({"a.rego": b"package a", "data.json": b'{"b": 1}'}, True, id="no manifest"),
        pytest.param({".manifest": b'{"roots": ["a/b"]}', "x.rego": b"package a.b.c"}, True, id="below a root"),
        pytest.param({".manifest": b'{"roots": ["a/b"]}', "x.rego": b"package a"}, False, id="above a root"),
        pytest.param({".manifest": b'{"roots": ["/a/"]}', "a/data.json": b"{}"}, True, id="slashes"),
        pytest.param({".manifest": b'{"roots": ["a"]}', "b/data.json": b'{"x":1}'}, False, id="data outside"),
        pytest.param({".manifest": b'{"roots": ["a", "a/b"]}'}, False, id="roots overlap"),
        pytest.param({".manifest": b'{"roots": ["a", "ab"]}', "ab/data.yaml": b"x: 1"}, True, id="only alike"),
        pytest.param({"data.json": b'{"a":{"b":1}}', "a/data.json": b'{"b":1}'}, False, id="data twice"),
        pytest.param({"data.json": b'{"a":{"b":1}}', "a/data.yml": b"c: 1"}, True, id="data beside data"),
        pytest.param({"data.json": b"[1]"}, False, id="a list"),
    ],
)
def test_opa_and_peltast_take_the_same_bundles(tmp_path: Path, files: dict[str, bytes], *, taken: bool) -> None:
    (tmp_path / "b.tar.gz").write_bytes(targz(files))
    assert (opa("build", "-b", "b.tar.gz", "-o", "out.tar.gz", folder=tmp_path).returncode == 0) == taken
    if taken:
        read_bundle(files, None)
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - test_bundle.py looks at what it says
            read_bundle(files, None)
