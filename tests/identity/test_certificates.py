from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from peltast.identity.certificates import NotAnSvid, pem, private_key_pem, spiffe_id_of

Certificate = Callable[..., x509.Certificate]
URI, DNS = x509.UniformResourceIdentifier, x509.DNSName


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param([URI("spiffe://a/b")], "spiffe://a/b", id="one URI"),
        pytest.param([URI("spiffe://a")], "spiffe://a", id="a trust domain"),
        pytest.param([DNS("a.example"), URI("spiffe://a/b"), DNS("b.example")], "spiffe://a/b", id="beside DNS names"),
    ],
)
def test_the_spiffe_id_is_the_one_uri_san(
    certificate_named: Certificate, names: list[x509.GeneralName], expected: str
) -> None:
    assert str(spiffe_id_of(certificate_named(*names))) == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        pytest.param([], "no subject alternative names", id="no SAN"),
        pytest.param([DNS("a.example")], "0 URI SANs", id="DNS only"),
        pytest.param([x509.IPAddress(ip_address("127.0.0.1"))], "0 URI SANs", id="address only"),
        pytest.param([URI("spiffe://a/b"), URI("spiffe://a/c")], "2 URI SANs", id="two SPIFFE IDs"),
        pytest.param([URI("spiffe://a/b"), URI("spiffe://a/b")], "2 URI SANs", id="one SPIFFE ID twice"),
        pytest.param([URI("spiffe://a/b"), URI("https://a/b")], "2 URI SANs", id="a SPIFFE ID and another URI"),
        pytest.param([URI("https://a/b")], None, id="another scheme"),
        pytest.param([URI("spiffe://")], None, id="no trust domain"),
        pytest.param([URI("spiffe://A/b")], None, id="a trust domain in capitals"),
        pytest.param([URI("spiffe://a/b/")], None, id="a slash at the end"),
        pytest.param([URI("spiffe://a/../b")], None, id="a path with dots"),
        pytest.param([URI("spiffe://a/b?c")], None, id="a query"),
        pytest.param([URI("spiffe://a:1/b")], None, id="a port"),
        pytest.param([URI("spiffe://u@a/b")], None, id="a user"),
        pytest.param([URI("spiffe://a/%62")], None, id="an escape"),
        pytest.param([URI("spiffe://a/b\0c")], None, id="a NUL"),
    ],
)
def test_a_certificate_that_names_nobody_is_no_svid(
    certificate_named: Certificate, names: list[x509.GeneralName], said: str | None
) -> None:
    with pytest.raises(NotAnSvid, match=said):
        spiffe_id_of(certificate_named(*names))


def test_pem_is_read_back(certificate_named: Certificate) -> None:
    certificates = [certificate_named(URI("spiffe://a/b")), certificate_named(URI("spiffe://a/c"))]
    assert x509.load_pem_x509_certificates(pem(*certificates)) == certificates


def test_a_key_in_pem_is_read_back() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    read = serialization.load_pem_private_key(private_key_pem(key), password=None)
    assert isinstance(read, ec.EllipticCurvePrivateKey)
    assert read.private_numbers() == key.private_numbers()
