"""Secrets for Envoy: the SVID and the trust bundles, as resources of its secret discovery service.

Names are SPIRE's (https://spiffe.io/docs/latest/deploying/spire_agent/#sds-configuration): ``default`` is the
workload's SVID, ``ALL`` the validation context with the bundle of every trust domain, each bound to its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import CertificateValidationContext, TlsCertificate
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig

from peltast.identity.svid import Svid

__all__ = ["BUNDLES_SECRET", "SVID_SECRET", "secrets"]

SVID_SECRET, BUNDLES_SECRET = "default", "ALL"


def secrets(svid: Svid, bundles: Mapping[str, bytes]) -> dict[str, Any]:
    """The secrets by name; `bundles` are roots in PEM by trust domain."""
    certificate = TlsCertificate(
        certificate_chain=DataSource(inline_bytes=svid.chain_pem), private_key=DataSource(inline_bytes=svid.key_pem)
    )
    return {
        SVID_SECRET: Secret(name=SVID_SECRET, tls_certificate=certificate),
        BUNDLES_SECRET: Secret(name=BUNDLES_SECRET, validation_context=validation_context(bundles)),
    }


def validation_context(bundles: Mapping[str, bytes]) -> Any:
    """A validation context by which a certificate is checked against its own trust domain's roots only."""
    domains = [
        SPIFFECertValidatorConfig.TrustDomain(name=name, trust_bundle=DataSource(inline_bytes=roots))
        for name, roots in sorted(bundles.items())
    ]
    validator = TypedExtensionConfig(name="envoy.tls.cert_validator.spiffe")
    validator.typed_config.Pack(SPIFFECertValidatorConfig(trust_domains=domains))
    return CertificateValidationContext(custom_validator_config=validator)
