"""OPA bundles: what is read of one, and what is refused, each with the file and the reason."""

from __future__ import annotations

import gzip
import json
import tarfile
from contextlib import suppress
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import DATA, FILES, MODULE, SECRET, bomb, image, manifest, signed, targz

from peltast.policies.sources import archive
from peltast.policies.sources.archive import MAX_BYTES, unpack
from peltast.policies.sources.bundle import merge, overlap, package_of, read_bundle, select
from peltast.policies.sources.bundle_signature import Verification, VerificationKey
from peltast.policies.sources.oci import layer

paths = st.lists(st.sampled_from(["a", "b", "c"]), max_size=3).map(tuple)


def refusal(files: dict[str, bytes], verification: Verification | None = None) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks
        read_bundle(files, verification)
    return str(caught.value)


# What is read ---------------------------------------------------------------------------------------------------------


def test_a_bundle_has_modules_data_roots_and_a_revision() -> None:
    files = {
        ".manifest": manifest(revision="r1", roots=["app", "/teams/red/"], rego_version=1, metadata={"by": "ci"}),
        "app/rules.rego": MODULE,
        "app/limits/data.json": b'{"day": 5}',
        "teams/red/data.yaml": b"members: [ada]",
        "data.json": DATA,
        "app/limits/data.yml": b"night: 1",
        "README.md": b"\xff is not read",
    }
    bundle = read_bundle(files, None)
    assert (bundle.revision, bundle.roots) == ("r1", (("app",), ("teams", "red")))
    assert bundle.modules == {"app/rules.rego": MODULE.decode()}
    assert bundle.data == {
        "app": {"limits": {"day": 5, "night": 1}, "users": {"ada": True}},
        "teams": {"red": {"members": ["ada"]}},
    }


def test_a_bundle_without_a_manifest_owns_everything() -> None:
    bundle = read_bundle(FILES, None)
    assert (bundle.revision, bundle.roots) == ("", ((),))


@pytest.mark.parametrize("name", ["data.json", "/data.json", "./data.json", "././/data.json"])
def test_an_archive_is_read_however_its_paths_begin(name: str) -> None:
    folder = tarfile.TarInfo("app")
    folder.type = tarfile.DIRTYPE
    assert unpack(targz({name: DATA, "app/a.rego": MODULE}, folder)) == {"data.json": DATA, "app/a.rego": MODULE}


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("package a", ("a",)),
        ("# licence\n\n  package a.b_1 # ours\n", ("a", "b_1")),
        ("#\n#\r\npackage\ta\r\n", ("a",)),
        ('package a["b-c"].d', ("a", "b-c", "d")),
        ("package a;x := 1", ("a",)),
    ],
)
def test_a_modules_package_is_read(text: str, package: tuple[str, ...]) -> None:
    assert package_of("m.rego", text) == package


@pytest.mark.parametrize("text", ["", "# package a", "import x", "packagea", "package a b", "package a.", "package 1"])
def test_a_module_whose_package_cannot_be_told_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"m\.rego: the module does not begin with a package"):
        package_of("m.rego", text)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "says"),
    [
        pytest.param({".manifest": b"{"}, ".manifest: Expecting", id="manifest is no JSON"),
        pytest.param({".manifest": b"[]"}, ".manifest: manifest: Input should be", id="manifest is a list"),
        pytest.param({".manifest": manifest(revision=1)}, ".manifest: revision: Input", id="revision is a number"),
        pytest.param({".manifest": manifest(roots="app")}, ".manifest: roots: Input", id="roots are a text"),
        pytest.param({".manifest": manifest(roots=[])}, ".manifest: no root is given", id="no root"),
        pytest.param(
            {".manifest": manifest(roots=["app", "app/x"])}, "the roots 'app' and 'app/x' overlap", id="roots overlap"
        ),
        pytest.param({".manifest": manifest(roots=["a", ""])}, "the roots 'a' and '' overlap", id="and everything"),
        pytest.param({".manifest": manifest(rego_version=0)}, "rego_version: Input should be 1", id="Rego v0"),
        pytest.param(
            {".manifest": manifest(file_rego_versions={"/a.rego": 0})}, "file_rego_versions./a.rego", id="a v0 file"
        ),
        pytest.param({".manifest": manifest(wasm=[{"module": "m"}])}, ".manifest: wasm.0", id="a wasm module"),
        pytest.param({"policy.wasm": b""}, "policy.wasm: WebAssembly is given", id="wasm"),
        pytest.param({"patch.json": b"{}"}, "patch.json: changes to another bundle", id="delta"),
        pytest.param({"a/.manifest": b"{}"}, "a/.manifest: a second manifest", id="a second manifest"),
        pytest.param({"x.manifest": b"{}"}, "x.manifest: a second manifest", id="what OPA reads as a manifest"),
        pytest.param({"a/.signatures.json": b"{}"}, "a/.signatures.json: a second signature", id="second signature"),
        pytest.param({"data.json": b"[1]"}, "data.json: an object is expected at the top", id="data are a list"),
        pytest.param({"data.json": b'{"a":1,"a":2}'}, "data.json: 'a' is given twice", id="a member twice"),
        pytest.param({"data.json": b'{"a": NaN}'}, "data.json: ", id="NaN"),
        pytest.param({"x/data.json": b"\xff"}, "x/data.json: UTF-8 is expected", id="data in no UTF-8"),
        pytest.param({"data.json": b'{"a":' + b"[" * 100_000}, "data.json: it is nested too deep", id="deep"),
        pytest.param({"data.yaml": b"a: [1"}, "data.yaml:2: not YAML", id="data are no YAML"),
        pytest.param({"data.yaml": b"a: 1\n---\nb: 1"}, "data.yaml: one YAML document", id="two documents"),
        pytest.param({"data.yaml": b""}, "data.yaml: one YAML document", id="an empty file"),
        pytest.param({"a.rego": b"\xff"}, "a.rego: UTF-8 is expected", id="a module in no UTF-8"),
        pytest.param(
            {"data.json": b'{"a": {"b": 1}}', "a/data.json": b'{"b": 1}'}, "data.json: data.a.b is given twice",
            id="data twice",
        ),
        pytest.param({"data.json": b'{"a": 1}', "a/data.yaml": b"b: 1"}, "data.a is given twice", id="number, object"),
        pytest.param(
            {"data.json": b'{"a":1,"b":1}', ".manifest": manifest(roots=["a"])},
            "data.json: data.b is in none of the manifest's roots", id="data outside the roots",
        ),
        pytest.param(
            {"data.json": b'{"a":1}', ".manifest": manifest(roots=["a/b"])}, "data.a is in none", id="data above a root"
        ),
        pytest.param(
            {"m.rego": b"package b.c", ".manifest": manifest(roots=["a", "b/c/d"])},
            "m.rego: the package b.c is in none of the manifest's roots", id="package outside the roots",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_file_and_reason(files: dict[str, bytes], says: str) -> None:
    assert says in refusal(files)


def special(name: str, type_: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = type_, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "is cut short", id="nothing"),
        pytest.param(b"PK\x03\x04", "not a tar archive", id="zip"),
        pytest.param(gzip.compress(b"no tar"), "not a tar archive", id="no tar"),
        pytest.param(targz(FILES)[:-20], "not a tar archive", id="cut short"),
        pytest.param(targz({"../data.json": DATA}), "'../data.json': the path leads out of the bundle", id="escape"),
        pytest.param(targz({"a/../../data.json": DATA}), "leads out of the bundle", id="escape within"),
        pytest.param(targz({"a\\..\\data.json": DATA}), "leads out of the bundle", id="escape on Windows"),
        pytest.param(targz({"/": DATA}), "a path of 1 to 32 printable names", id="no name"),
        pytest.param(targz({"a/" * 32 + "data.json": DATA}), "a path of 1 to 32", id="too deep"),
        pytest.param(targz({"a\n.rego": MODULE}), "printable", id="a line's end in a name"),
        pytest.param(targz({"data.json": DATA, "/data.json": DATA}), "data.json: is in the archive twice", id="twice"),
        pytest.param(targz({}, special("data.json", tarfile.SYMTYPE)), "data.json: a plain file", id="symbolic link"),
        pytest.param(targz({}, special("data.json", tarfile.LNKTYPE)), "data.json: a plain file", id="hard link"),
        pytest.param(targz({}, special("data.json", tarfile.CHRTYPE)), "data.json: a plain file", id="device"),
        pytest.param(targz({}, special("data.json", tarfile.FIFOTYPE)), "data.json: a plain file", id="pipe"),
    ],
)
def test_an_archive_that_is_none_or_leads_elsewhere_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - see below
        unpack(content)
    if says != "is cut short":
        assert says in str(caught.value)


def test_a_zip_bomb_is_refused_before_it_is_inflated() -> None:
    small = bomb(MAX_BYTES)
    assert len(small) < 1024 * 1024
    with pytest.raises(ValueError, match="holds more than 128 MiB"):
        unpack(small)


def test_a_member_that_claims_more_than_the_archive_has_is_refused() -> None:
    member = tarfile.TarInfo("data.json")
    member.size = 1 << 40
    with pytest.raises(ValueError, match=r"data\.json: a plain file|not a tar"):
        unpack(gzip.compress(member.tobuf() + bytes(1024)))


def test_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    assert len(unpack(targz({f"{n}.rego": MODULE for n in range(3)}))) == 3
    with pytest.raises(ValueError, match="more than 3 members"):
        unpack(targz({f"{n}.rego": MODULE for n in range(4)}))


@given(st.binary(max_size=300), st.booleans())
def test_any_archive_is_read_or_refused(content: bytes, compressed: bool) -> None:
    with suppress(ValueError):
        unpack(gzip.compress(content) if compressed else content)


@given(st.integers(0, 511), st.integers(0, 255))
def test_any_header_is_read_or_refused(at: int, byte: int) -> None:
    """Its checksum is put right, so that the change is looked at."""
    block = bytearray(tarfile.TarInfo("data.json").tobuf())
    block[at] = byte
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    with suppress(ValueError):
        unpack(gzip.compress(bytes(block) + bytes(1024)))


@given(st.dictionaries(st.sampled_from([".manifest", "data.json", "a/data.yaml", "m.rego"]), st.binary(max_size=60)))
def test_any_files_are_read_or_refused(files: dict[str, bytes]) -> None:
    with suppress(ValueError):
        read_bundle(files, None)


@given(paths, paths)
def test_roots_overlap_when_one_is_below_the_other(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    shared = min(len(one), len(other))
    assert overlap(one, other) == overlap(other, one) == (one[:shared] == other[:shared])


trees = st.recursive(
    st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
)
objects = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(objects, objects)
def test_merged_data_are_both_or_refused(one: dict[str, Any], other: dict[str, Any]) -> None:
    before = json.dumps([one, other])
    merged: dict[str, Any] = {}
    merge("one", merged, one)
    shared = leaves(one).keys() & leaves(other).keys()
    if shared or any(mine != theirs and overlap(mine, theirs) for mine in leaves(one) for theirs in leaves(other)):
        with pytest.raises(ValueError, match=r"other: data\..* is given twice"):
            merge("other", merged, other)
    else:
        merge("other", merged, other)
        assert leaves(merged) == {**leaves(one), **leaves(other)}
    assert json.dumps([one, other]) == before


def leaves(tree: Any, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict):
        return {at: tree}
    return {path: leaf for key, value in tree.items() for path, leaf in leaves(value, (*at, key)).items()}


values = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=9
)


def at(data: Any, path: tuple[str, ...]) -> Any:
    """What Rego finds at `path`."""
    for name in path:
        if not isinstance(data, dict) or name not in data:
            return None
        data = data[name]
    return data


@given(st.dictionaries(st.sampled_from("abc"), values, max_size=3), st.lists(paths, max_size=3))
def test_what_is_selected_is_all_that_paths_lead_to_and_no_more(data: dict[str, Any], wanted: list[Any]) -> None:
    chosen = select(data, wanted)
    assert all(at(chosen, path) == at(data, path) for path in wanted)
    assert select(chosen, wanted) == chosen
    if not wanted:
        assert chosen == {}


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ([("a", "b")], {"a": {"b": 1}}),
        ([("a",)], {"a": {"b": 1, "c": {"d": 2}}}),
        ([("a", "b"), ("a", "c", "d")], {"a": {"b": 1, "c": {"d": 2}}}),
        ([("a", "b", "in the way")], {"a": {"b": 1}}),
        ([("a", "x"), ("y",)], {"a": {}}),
        ([("e",), ()], {"a": {"b": 1, "c": {"d": 2}}, "e": 3}),
    ],
)
def test_what_is_selected(wanted: list[Any], chosen: dict[str, Any]) -> None:
    assert select({"a": {"b": 1, "c": {"d": 2}}, "e": 3}, wanted) == chosen


# Signatures -----------------------------------------------------------------------------------------------------------

PLAIN = {"app/rules.rego": MODULE, "data.json": b'{"app":{"users":{"ada":true}}}'}
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def by(algorithm: str = "HS256", key: str = SECRET, scope: str = "", **more: str) -> Verification:
    return Verification(
        (VerificationKey("other", "RS256", pem(RSA)), VerificationKey("k", algorithm, key, scope)), **more
    )


@pytest.mark.parametrize(
    ("algorithm", "private", "public"),
    [("RS256", RSA, pem(RSA)), ("ES256", EC, pem(EC)), ("HS256", SECRET, SECRET)],
    ids=["RS256", "ES256", "HS256"],
)
def test_a_signed_bundle_is_verified(algorithm: str, private: Any, public: str) -> None:
    files = signed(PLAIN, private, algorithm)
    assert read_bundle(files, by(algorithm, public)).data == {"app": {"users": {"ada": True}}}


def test_json_is_hashed_by_its_value() -> None:
    value = '{"a":[1,1.50,1e3,-0.0,"\u00e9<&>\u2028\\n\\u0001\\"",null],"b":{},"z":123456789012345678901234567890}'
    hashed = value.replace("\u2028", "\\u2028")
    files = signed({"data.json": hashed.encode()})
    files["data.json"] = (
        b'\n{"z": 123456789012345678901234567890, "b": {}, ' + value[1:].split(',"b"')[0].encode() + b"}"
    )
    assert read_bundle(files, by()).data["a"][1] == 1.5


@pytest.mark.parametrize(
    ("files", "verification", "says"),
    [
        pytest.param(PLAIN, by(), ".signatures.json: is missing", id="not signed"),
        pytest.param(signed(PLAIN), None, "the policy gives no keys", id="no keys"),
        pytest.param(signed(PLAIN, kid="x"), by(), "signed by the key 'x'", id="another key's id"),
        pytest.param(signed(PLAIN, kid=None), by(), "signed by the key None", id="no key's id"),
        pytest.param(signed(PLAIN, key=SECRET + "!"), by(), "Signature verification failed", id="another secret"),
        pytest.param(signed(PLAIN, RSA, "RS256"), by(), "alg value is not allowed", id="another algorithm"),
        pytest.param(signed(PLAIN), by(keyid="other"), "alg value is not allowed", id="the policy's key holds"),
        pytest.param(signed(PLAIN, None, "none"), by(), ".signatures.json: ", id="no algorithm"),
        pytest.param(signed(PLAIN, scope="read"), by(), "signed for the scope 'read'", id="a scope nobody wants"),
        pytest.param(signed(PLAIN), by(scope="write"), "'write' is expected", id="no scope"),
        pytest.param({**signed(PLAIN), "m.rego": b""}, by(), "m.rego: is not in the signature", id="one file more"),
        pytest.param({**signed(PLAIN), "app/rules.rego": b"package app.rules"}, by(), "app/rules.rego: is not what was",
                     id="another module"),
        pytest.param({**signed(PLAIN), "data.json": b"{}"}, by(), "data.json: is not what was signed", id="other data"),
        pytest.param({k: v for k, v in signed(PLAIN).items() if k != "data.json"}, by(),
                     "data.json: is signed, and is not in the bundle", id="one file less"),
        pytest.param(signed(PLAIN, files=[{"name": "a"}]), by(), "without name, hash and algorithm", id="no hash"),
        pytest.param(signed(PLAIN, files=None), by(), "names no files", id="no files"),
        pytest.param(signed(PLAIN, files=[{"name": n, "hash": "", "algorithm": "MD5"} for n in PLAIN]), by(),
                     "hashed by MD5", id="a weak hash"),
        pytest.param({**PLAIN, ".signatures.json": b"[]"}, by(), "a JSON object", id="signatures are a list"),
        pytest.param({**PLAIN, ".signatures.json": b"{}"}, by(), "a list of one JWT", id="no JWT"),
        pytest.param({**PLAIN, ".signatures.json": b'{"signatures":["a","b"]}'}, by(), "of one JWT", id="two"),
        pytest.param({**PLAIN, ".signatures.json": b'{"signatures":["a.b.c"]}'}, by(), ".signatures", id="none"),
        pytest.param({**PLAIN, ".signatures.json": b'{"plugin":"x","signatures":["a"]}'}, by(), "plug-in", id="plugin"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_signed_is_refused(
    files: dict[str, bytes], verification: Verification | None, says: str
) -> None:
    message = refusal(files, verification)
    assert says in message
    assert SECRET not in message


def test_a_key_is_named_in_the_policy_in_the_header_or_in_the_claims() -> None:
    assert read_bundle(signed(PLAIN, kid=None), by(keyid="k"))
    assert read_bundle(signed(PLAIN, kid=None, keyid="k"), by())
    assert read_bundle(signed(PLAIN, scope="write"), by(scope="write"))


@pytest.mark.parametrize(
    ("algorithm", "key", "says"),
    [
        ("HS256", "short", "less than 32 bytes"),
        ("RS256", "-----BEGIN", "no public key in PEM"),
        ("RS256", pem(EC), "not for RS256"),
        ("ES256", pem(RSA), "not for ES256"),
        ("ES256", pem(ec.generate_private_key(ec.SECP384R1())), "not for ES256"),
        ("RS256", pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "a short one"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_and_not_shown(algorithm: str, key: str, says: str) -> None:
    made = VerificationKey("k", algorithm, key)
    with pytest.raises(ValueError, match=says) as caught:
        made.load()
    assert key not in str(caught.value)
    assert key not in repr(made)


@given(st.binary(max_size=200))
def test_any_signature_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_bundle({**PLAIN, ".signatures.json": content}, by())


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=40))
def test_any_token_is_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    parts = (jwt.utils.base64url_encode(part).decode() for part in (header, payload, signature))
    content = json.dumps({"signatures": [".".join(parts)]}).encode()
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_bundle({**PLAIN, ".signatures.json": content}, by())


# Image layouts --------------------------------------------------------------------------------------------------------


def test_the_one_layer_of_a_layout_is_the_bundle() -> None:
    assert unpack(layer(image(targz(FILES)))) == FILES


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if not path.startswith(name)}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        pytest.param(without(image(b"x"), "oci-layout"), "oci-layout: is missing", id="no layout"),
        pytest.param(image(b"x", version="2.0.0"), "oci-layout: imageLayoutVersion", id="another version"),
        pytest.param(without(image(b"x"), "index.json"), "index.json: is missing", id="no index"),
        pytest.param({**image(b"x"), "index.json": b"{"}, "index.json: Expecting", id="index is no JSON"),
        pytest.param({**image(b"x"), "index.json": b"[]"}, "index.json: ", id="index is a list"),
        pytest.param(image(b"x", images=0), "index.json: manifests: List should have at least 1", id="no image"),
        pytest.param(image(b"x", images=2), "index.json: manifests: List should have at most 1", id="two images"),
        pytest.param(image(b"x", layers=0), "0 layers of the type application/vnd.oci", id="no layer"),
        pytest.param(image(b"x", layers=2), "2 layers of the type application/vnd.oci", id="two layers"),
        pytest.param(image(b"x", media_type="text/plain"), "0 layers of the type", id="no archive"),
        pytest.param(without(image(b"x"), "blobs"), "is missing", id="no blobs"),
        pytest.param(
            {name: content + b" " if name.startswith("blobs") else content for name, content in image(b"x").items()},
            "is not what its name and size say", id="other blobs",
        ),
        pytest.param(
            {**image(b"x"), "index.json": b'{"manifests":[{"digest":"sha256:../../x","size":1}]}'},
            "index.json: manifests.0.digest: String should match", id="a digest that is a path",
        ),
    ],
)  # fmt: skip
def test_a_layout_that_is_none_is_refused(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - see below
        layer(files)
    assert says in str(caught.value)
