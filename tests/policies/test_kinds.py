"""What each kind refuses: the file, the line, the field, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peltast.policies.problems import Problem

Problems = Callable[..., list[Problem]]

HEADS = {
    "AuthorizationPolicy": "security.istio.io/v1",
    "RequestAuthentication": "security.istio.io/v1",
    "PeerAuthentication": "security.istio.io/v1",
    "AuditPolicy": "peltast.dev/v1",
    "MeshConfig": "peltast.dev/v1",
    "RateLimitPolicy": "peltast.dev/v1",
    "RegoPolicy": "peltast.dev/v1",
    "WorkloadRegistration": "peltast.dev/v1",
    "WorkloadEntry": "networking.istio.io/v1",
    "Service": "v1",
}
SPEC_LINE = 5
"""The line of the first member of a spec."""


def document(kind: str, spec: str) -> str:
    head = f"apiVersion: {HEADS[kind]}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\nspec:\n"
    return head + "".join(f"  {line}\n" for line in spec.split("\n"))


RULE = "rules:\n- from:\n  - source:\n      "
OPERATION = "rules:\n- to:\n  - operation:\n      "
WHEN = "rules:\n- when:\n  - "
PORT_LEVEL = "selector: {matchLabels: {a: b}}\nportLevelMtls:\n  "
PORTS = "selector: {a: b}\nports:\n- "
JWT = "jwtRules:\n- issuer: a\n  jwks: '{}'\n  "
URI = "jwtRules:\n- issuer: a\n  jwksUri: "
CHOSEN_HEADER = "record:\n  headers:\n  - {name: "
CHOSEN_CLAIM = "record:\n  claims:\n  - {name: "
REGO = "entrypoint: data.a.b\nmodule: package a\n"
BUNDLE = "entrypoint: data.a.b\nbundle: "
POLLING = BUNDLE + "{url: 'https://x/', polling: %s}"
SIGNING = BUNDLE + "{file: a, signing: %s}"

RATES = "limits:\n- rates: [{requests: 1, per: 1s}]\n  "
RATE = "limits:\n- rates:\n  - "

REFUSED = [
    # kind, spec, line after the first of the spec, field, given, allowed
    ("RateLimitPolicy", "{}", 0, "limits", "nothing is given", "the field is required"),
    ("RateLimitPolicy", "limits: []", 0, "limits", "0 are given", "1 to 32 are allowed"),
    ("RateLimitPolicy", RATES + "scope: mesh", 2, "limits[0].scope", "unknown field", "known are name, rules, by"),
    ("RateLimitPolicy", "scope: mesh\n" + RATES, 0, "scope", '"mesh" is given', "'local' or 'global'"),
    ("RateLimitPolicy", "onError: open\n" + RATES, 0, "onError", '"open" is given', "'deny' or 'allow'"),
    ("RateLimitPolicy", "dryRun: 'true'\n" + RATES, 0, "dryRun", '"true" is given', "boolean"),
    ("RateLimitPolicy", "targetRef: {kind: Gateway, name: a}\n" + RATES, 0, "targetRef.kind", "Gateway", "a Service"),
    ("RateLimitPolicy", "limits:\n- name: a", 1, "limits[0].rates", "nothing is given", "required"),
    ("RateLimitPolicy", "limits:\n- rates: []", 1, "limits[0].rates", "0 are given", "1 to 8 are allowed"),
    ("RateLimitPolicy", RATES + "name: 'a b'", 2, "limits[0].name", '"a b" is given', "pattern"),
    ("RateLimitPolicy", RATES + "by: []", 2, "limits[0].by", "an empty list", "leave it out"),
    ("RateLimitPolicy", RATES + "rules: []", 2, "limits[0].rules", "an empty list", "leave it out"),
    ("RateLimitPolicy", RATES + "pathTemplates: []", 2, "…pathTemplates", "an empty list", "leave it out"),
    ("RateLimitPolicy", RATES + "by: [source.name]", 2, "limits[0].by[0]", "'source.name'", "source.principal"),
    ("RateLimitPolicy", RATES + "by: ['request.headers[]']", 2, "limits[0].by[0]", "'request.headers[]'", "one of"),
    ("RateLimitPolicy", RATES + "by: [source.ip, source.ip]", 2, "limits[0].by[1]", "given twice", "each once"),
    ("RateLimitPolicy", RATES + "by: [request.pathTemplate]", 1, "…pathTemplates", "are not given", "among what"),
    ("RateLimitPolicy", RATES + "pathTemplates: [/a]", 2, "…pathTemplates", "they are given", "request.pathTemplate"),
    (
        "RateLimitPolicy",
        RATES + "by: [request.pathTemplate]\n  pathTemplates: ['/a{*}']",
        3,
        "…pathTemplates[0]",
        "'/a{*}' is given",
        "whole segments",
    ),
    ("RateLimitPolicy", RATES + "rules: [{to: []}]", 2, "limits[0].rules[0].to", "an empty list", "leave it out"),
    (
        "RateLimitPolicy",
        RATES + "rules: [{from: [{source: {ipBlocks: [a]}}]}]",
        2,
        "limits[0].rules[0].from[0].source.ipBlocks[0]",
        "'a' is given",
        "CIDR block",
    ),
    ("RateLimitPolicy", RATE + "{requests: 0, per: 1s}", 2, "…rates[0].requests", "0 is given", "greater than or"),
    ("RateLimitPolicy", RATE + "{requests: 1, per: 0s}", 2, "…rates[0].per", '"0s" is given', "pattern"),
    ("RateLimitPolicy", RATE + "{requests: 1, per: minute}", 2, "…rates[0].per", '"minute" is given', "pattern"),
    ("RateLimitPolicy", RATE + "{requests: 1, per: 1s, burst: 0}", 2, "…rates[0].burst", "0 is given", "greater than"),
    ("RateLimitPolicy", RATE + "{requests: 2000000, per: 1ms}", 2, "…rates[0].requests", "per 1ms", "nanosecond"),
    ("RateLimitPolicy", RATE + "{requests: 1, per: 50d, burst: 2}", 2, "…rates[0].burst", "100 days", "90 days"),
    ("RateLimitPolicy", RATE + "{requests: 1, per: 99d}", 2, "…rates[0].burst", "99 days", "within 90 days"),
    ("AuthorizationPolicy", "rulez: []", 0, "rulez", "unknown field", "did you mean rules?"),
    ("AuthorizationPolicy", "zzz: []", 0, "zzz", "unknown field", "known are selector, targetRef, targetRefs, action"),
    ("AuthorizationPolicy", "action: LOG", 0, "action", '"LOG" is given', "'ALLOW', 'DENY', 'CUSTOM' or 'AUDIT'"),
    ("AuthorizationPolicy", "action: AUDIT", 0, "rules", "no rules are given", "would never match"),
    ("AuthorizationPolicy", "action: allow", 0, "action", '"allow" is given', "'ALLOW', 'DENY', 'CUSTOM' or"),
    ("AuthorizationPolicy", "action: DENY", 0, "rules", "no rules are given", "would never match"),
    ("AuthorizationPolicy", "action: CUSTOM\nrules: [{}]", 0, "provider", "nothing is given", "needs provider.name"),
    ("AuthorizationPolicy", "rules: [{}]\nprovider: {name: a}", 1, "provider", "action ALLOW", "only action CUSTOM"),
    ("AuthorizationPolicy", "targetRef: {}", 0, "targetRef.kind", "nothing is given", "required"),
    ("AuthorizationPolicy", "targetRefs: []", 0, "targetRefs", "an empty list", "leave it out"),
    (
        "AuthorizationPolicy",
        "targetRefs:\n- {kind: Gateway, group: gateway.networking.k8s.io, name: a}",
        1,
        "targetRefs[0].kind",
        "gateway.networking.k8s.io/Gateway is given",
        "a Service",
    ),
    (
        "AuthorizationPolicy",
        "targetRefs:\n- {kind: ServiceEntry, group: networking.istio.io, name: a}",
        1,
        "targetRefs[0].kind",
        "networking.istio.io/ServiceEntry is given",
        "gateways and waypoints are not there yet",
    ),
    ("AuthorizationPolicy", f"targetRefs: [{'{kind: Service, name: a},' * 17}]", 0, "targetRefs", "17", "at most 16"),
    (
        "AuthorizationPolicy",
        "selector: {}\ntargetRef: {kind: Service, name: a}",
        0,
        "",
        "selector and targetRef are given",
        "one of them",
    ),
    ("AuthorizationPolicy", "rules: {}", 0, "rules", "{} is given", "array"),
    ("AuthorizationPolicy", "rules:\n- form: []", 1, "rules[0].form", "unknown field", "did you mean from?"),
    ("AuthorizationPolicy", "rules:\n- from: []", 1, "rules[0].from", "an empty list", "leave it out"),
    ("AuthorizationPolicy", "rules:\n- to: []", 1, "rules[0].to", "an empty list", "leave it out"),
    ("AuthorizationPolicy", "rules:\n- when: []", 1, "rules[0].when", "an empty list", "leave it out"),
    ("AuthorizationPolicy", RULE + "principal: [a]", 3, "…source.principal", "unknown field", "mean principals?"),
    ("AuthorizationPolicy", RULE + "principals: a", 3, "…source.principals", '"a" is given', "array"),
    ("AuthorizationPolicy", RULE + "principals: [1]", 3, "…source.principals[0]", "1 is given", "string"),
    ("AuthorizationPolicy", RULE + "principals: ['']", 3, "…source.principals[0]", "empty text", '"*" matches any'),
    ("AuthorizationPolicy", RULE + "principals: []", 3, "…source.principals", "an empty list", "leave it out"),
    (
        "AuthorizationPolicy",
        RULE + "namespaces: [a]\n      notPrincipals: []",
        4,
        "…source.notPrincipals",
        "an empty list",
        "leave it out",
    ),
    ("AuthorizationPolicy", RULE + "remoteIpBlocks: [a]", 3, "…source.remoteIpBlocks[0]", "'a'", "CIDR block"),
    ("AuthorizationPolicy", RULE + "notRemoteIpBlocks: [a]", 3, "…source.notRemoteIpBlocks[0]", "'a'", "CIDR block"),
    ("AuthorizationPolicy", RULE + "namespaces: [a*b]", 3, "…source.namespaces[0]", "'a*b'", "at the beginning or"),
    ("AuthorizationPolicy", RULE + "notNamespaces: ['*a*']", 3, "…source.notNamespaces[0]", "'*a*'", "a * at the"),
    ("AuthorizationPolicy", WHEN + "key: source.namespace\n    values: [a*b]", 3, "…values[0]", "a*b", "a * at the"),
    ("AuthorizationPolicy", WHEN + "key: remote.ip\n    values: [a]", 3, "…values[0]", "'a'", "CIDR block"),
    (
        "AuthorizationPolicy",
        WHEN + "key: experimental.envoy.filters.network.mysql_proxy[db.t]\n    values: ['[update]']",
        2,
        "…when[0].key",
        "mysql_proxy",
        "no such filters",
    ),
    (
        "AuthorizationPolicy",
        WHEN + "key: destination.labels[version]\n    values: [v1]",
        2,
        "…when[0].key",
        "destination.labels",
        "a policy's selector",
    ),
    ("AuthorizationPolicy", OPERATION + "paths: ['/{x}']", 3, "…operation.paths[0]", "'/{x}'", "whole segments"),
    ("AuthorizationPolicy", OPERATION + "notPaths: ['/a}']", 3, "…operation.notPaths[0]", "'/a}'", "whole segments"),
    ("AuditPolicy", "denials: {policyName: 'yes'}", 0, "denials.policyName", '"yes" is given', "boolean"),
    ("AuditPolicy", "record: {query: drop}", 0, "record.query", '"drop" is given', "'keep', 'redact' or 'hash'"),
    ("AuditPolicy", "record: {allowed: none}", 0, "record.allowed", '"none" is given', "'full' or 'summary'"),
    ("AuditPolicy", "record: {body: keep}", 0, "record.body", "unknown field", "known are"),
    ("AuditPolicy", CHOSEN_HEADER + "x-a}", 2, "record.headers[0].as", "nothing is given", "required"),
    ("AuditPolicy", CHOSEN_HEADER + "':path', as: keep}", 2, "…headers[0].name", "':path'", "the name of a header"),
    ("AuditPolicy", CHOSEN_HEADER + "'a b', as: keep}", 2, "…headers[0].name", "'a b'", "the name of a header"),
    ("AuditPolicy", CHOSEN_HEADER + "Cookie, as: keep}", 2, "…headers[0].as", "keep is given", "redact or hash"),
    ("AuditPolicy", CHOSEN_HEADER + "authorization, as: keep}", 2, "…headers[0].as", "keep is given", "redact or hash"),
    (
        "AuditPolicy",
        CHOSEN_HEADER + "Proxy-Authorization, as: keep}",
        2,
        "…headers[0].as",
        "keep is given",
        "could act as the caller",
    ),
    (
        "AuditPolicy",
        CHOSEN_HEADER + "x-a, as: keep}\n  - {name: X-A, as: hash}",
        3,
        "…headers[1].name",
        "'x-a' is given twice",
        "one way",
    ),
    (
        "AuditPolicy",
        "record:\n  headers:\n" + "".join(f"  - {{name: x-{number}, as: keep}}\n" for number in range(33))[:-1],
        2,
        "record.headers",
        "33 are given",
        "at most 32",
    ),
    ("AuditPolicy", CHOSEN_CLAIM + "'claims[a', as: keep}", 2, "…claims[0].name", "'claims[a'", "claims[NAME][NAME]"),
    ("AuditPolicy", CHOSEN_CLAIM + "'a[b]', as: keep}", 2, "…claims[0].name", "'a[b]'", "claims[NAME][NAME]"),
    ("AuditPolicy", CHOSEN_CLAIM + "'claims[][a]', as: keep}", 2, "…claims[0].name", "'claims[][a]'", "of at most 256"),
    ("AuditPolicy", CHOSEN_CLAIM + f"{'x' * 257}, as: keep}}", 2, "…claims[0].name", "xxx", "of at most 256"),
    (
        "AuditPolicy",
        CHOSEN_CLAIM + "a, as: keep}\n  - {name: 'claims[a]', as: hash}",
        3,
        "…claims[1].name",
        "given twice",
        "one way",
    ),
    ("AuditPolicy", "onSpoolfull: deny", 0, "onSpoolfull", "unknown field", "did you mean onSpoolFull?"),
    ("AuditPolicy", "onSpoolFull: allow", 0, "onSpoolFull", '"allow" is given', "'deny' or 'drop'"),
    ("AuditPolicy", "durability: disk", 0, "durability", '"disk" is given', "'process' or 'machine'"),
    ("AuditPolicy", "durability: machine\nsyncInterval: 0s", 1, "syncInterval", '"0s" is given', "pattern"),
    ("AuditPolicy", "durability: process\nsyncInterval: 1s", 1, "syncInterval", "'1s' is given", "durability: machine"),
    ("MeshConfig", "trustDomain: a", 0, "trustDomain", "not taken here", "--trust-domain"),
    ("MeshConfig", "rootNamespace: A", 0, "rootNamespace", '"A" is given', "pattern"),
    ("MeshConfig", "trustDomainAliases: ['a/b']", 0, "trustDomainAliases[0]", "'a/b'", "a trust domain is expected"),
    ("MeshConfig", "trustDomainAliases: ['*']", 0, "trustDomainAliases[0]", "'*'", "a trust domain is expected"),
    ("MeshConfig", "trustDomainAliases: [a, a]", 0, "trustDomainAliases[0]", "'a'", "given once"),
    (
        "MeshConfig",
        "pathNormalization: {normalization: DEFAULT}",
        0,
        "pathNormalization.normalization",
        '"DEFAULT" is given',
        "'MERGE_SLASHES'",
    ),
    (
        "MeshConfig",
        "defaultConfig: {gatewayTopology: {numTrustedProxies: -1}}",
        0,
        "defaultConfig.gatewayTopology.numTrustedProxies",
        "-1 is given",
        "greater than or equal to 0",
    ),
    (
        "MeshConfig",
        "defaultConfig: {gatewayTopology: {proxyProtocol: {}}}",
        0,
        "defaultConfig.gatewayTopology.proxyProtocol",
        "not taken here",
        "PROXY protocol",
    ),
    ("MeshConfig", "enableTracing: true", 0, "enableTracing", "unknown field", "known are rootNamespace"),
    ("AuthorizationPolicy", RULE + "serviceAccounts: ['a*']", 3, "…source.serviceAccounts[0]", "'a*'", "ACCOUNT"),
    ("AuthorizationPolicy", RULE + "serviceAccounts: [a/b/c]", 3, "…source.serviceAccounts[0]", "a/b/c", "ACCOUNT"),
    ("AuthorizationPolicy", RULE + "serviceAccounts: [a/]", 3, "…source.serviceAccounts[0]", "'a/'", "ACCOUNT"),
    (
        "AuthorizationPolicy",
        RULE + f"serviceAccounts: [{'a' * 321}]",
        3,
        "…source.serviceAccounts[0]",
        "'aaa",
        "ACCOUNT",
    ),
    ("AuthorizationPolicy", RULE + f"serviceAccounts: [{'a,' * 17}]", 3, "…source.serviceAccounts", "17", "at most 16"),
    (
        "AuthorizationPolicy",
        RULE + "notNamespaces: [a]\n      serviceAccounts: [a]",
        4,
        "…source.serviceAccounts",
        "namespaces",
        "the one or",
    ),
    ("AuthorizationPolicy", WHEN + "key: source.serviceAccount\n    values: [a/*]", 3, "…values[0]", "a/*", "ACCOUNT"),
    ("AuthorizationPolicy", RULE + "ipBlocks: [a]", 3, "…source.ipBlocks[0]", "'a' is given", "CIDR block"),
    ("AuthorizationPolicy", RULE + "ipBlocks: [10.0.0.0/33]", 3, "…source.ipBlocks[0]", "/33", "CIDR block"),
    ("AuthorizationPolicy", RULE + "ipBlocks: [10.0.0.0/255.0.0.0]", 3, "…source.ipBlocks[0]", "/255", "CIDR block"),
    ("AuthorizationPolicy", RULE + "ipBlocks: ['fe80::1%eth0']", 3, "…source.ipBlocks[0]", "%eth0", "CIDR block"),
    ("AuthorizationPolicy", RULE + "ipBlocks: ['::ffff:10.0.0.0/104']", 3, "…source.ipBlocks[0]", "ffff", "IPv4"),
    ("AuthorizationPolicy", RULE + "notIpBlocks: [a, b]", 3, "…source.notIpBlocks[0]", "'a' is given", "CIDR block"),
    ("AuthorizationPolicy", OPERATION + "ports: ['0']", 3, "…operation.ports[0]", "'0' is given", '"1" to "65535"'),
    ("AuthorizationPolicy", OPERATION + "ports: ['65536']", 3, "…operation.ports[0]", "'65536'", '"1" to "65535"'),
    ("AuthorizationPolicy", OPERATION + "ports: ['080']", 3, "…operation.ports[0]", "'080' is given", '"1" to "65535"'),
    ("AuthorizationPolicy", OPERATION + "ports: ['80*']", 3, "…operation.ports[0]", "'80*' is given", '"1" to "65535"'),
    ("AuthorizationPolicy", OPERATION + "ports: [80]", 3, "…operation.ports[0]", "80 is given", "string"),
    (
        "AuthorizationPolicy",
        OPERATION + "paths: ['/{*}a']",
        3,
        "…operation.paths[0]",
        "'/{*}a' is given",
        "whole segments",
    ),
    ("AuthorizationPolicy", OPERATION + "paths: ['{*}']", 3, "…operation.paths[0]", "'{*}'", "whole segments"),
    ("AuthorizationPolicy", OPERATION + "paths: ['/{**}/{*}']", 3, "…operation.paths[0]", "/{**}/{*}", "the last"),
    ("AuthorizationPolicy", OPERATION + "notPaths: ['/{*}/*']", 3, "…operation.notPaths[0]", "/{*}/*", "nowhere else"),
    ("AuthorizationPolicy", OPERATION + "hosts: []", 3, "…operation.hosts", "an empty list", "leave it out"),
    ("AuthorizationPolicy", "rules:\n- to:\n  - operation: {}", 2, "…operation", "nothing is given", "at least one of"),
    ("AuthorizationPolicy", "rules:\n- from:\n  - source: {}", 2, "…source", "nothing is given", "at least one of"),
    ("AuthorizationPolicy", "rules:\n- from:\n  - {}", 2, "…from[0].source", "nothing is given", "required"),
    ("AuthorizationPolicy", WHEN + "key: source.ip", 2, "…when[0]", "no values", "needs values or notValues"),
    (
        "AuthorizationPolicy",
        WHEN + "key: user\n    values: [a]",
        2,
        "…when[0].key",
        "'user' is given",
        "request.headers",
    ),
    (
        "AuthorizationPolicy",
        WHEN + "key: request.headers\n    values: [a]",
        2,
        "…when[0].key",
        "'request.headers' is given",
        "request.headers[NAME]",
    ),
    ("AuthorizationPolicy", WHEN + "key: source.ip\n    values: [a]", 3, "…when[0].values[0]", "'a'", "CIDR block"),
    (
        "AuthorizationPolicy",
        WHEN + "key: destination.port\n    values: [http]",
        3,
        "…when[0].values[0]",
        "'http' is given",
        '"1" to "65535"',
    ),
    (
        "AuthorizationPolicy",
        WHEN + "key: destination.port\n    notValues: ['80', '80*']",
        3,
        "…when[0].notValues[1]",
        "'80*' is given",
        '"1" to "65535"',
    ),
    (
        "AuthorizationPolicy",
        WHEN + "key: source.ip\n    values: ['']",
        3,
        "…when[0].values[0]",
        "'' is given",
        "CIDR block",
    ),
    ("RequestAuthentication", "jwtRules:\n- issuer: a", 1, "…[0].jwks", "neither jwks nor jwksUri", "one of them"),
    ("RequestAuthentication", "jwtRules:\n- issuer: a\n  jwks: '{'", 2, "…jwtRules[0].jwks", "not JSON", "JWK Set"),
    ("RequestAuthentication", "jwtRules:\n- issuer: ''\n  jwks: '{}'", 1, "…jwtRules[0].issuer", '"" is', "1 char"),
    ("RequestAuthentication", JWT + "jwksUri: https://b", 2, "…jwks", "jwks and jwksUri", "one of them"),
    ("RequestAuthentication", JWT + "jwks_uri: https://b", 3, "…jwks_uri", "not taken", "written jwksUri"),
    ("RequestAuthentication", JWT + "timeout: 5s", 3, "…timeout", "5s is given", "for jwksUri"),
    ("RequestAuthentication", URI + "https://b\n  timeout: 61s", 3, "…timeout", "61s is given", "at most 60s"),
    ("RequestAuthentication", URI + "https://b\n  timeout: 5", 3, "…timeout", "5 is given", "string"),
    *(
        ("RequestAuthentication", URI + uri, 2, "…jwksUri", f"'{uri}' is given", "https or http")
        for uri in ("b", "ftp://b/", "file:///etc/keys", "https:///keys", "https://b:0/", "https://b:x/", "https://é/")
    ),
    ("RequestAuthentication", URI + "https://u:p@b/", 2, "…jwksUri", "u:p@b", "without a user"),
    ("RequestAuthentication", JWT + "fromHeaders: [{name: ''}]", 3, "…fromHeaders[0].name", '"" is given', "pattern"),
    ("RequestAuthentication", JWT + "fromHeaders: [{name: ':path'}]", 3, "…[0].name", '":path" is given', "pattern"),
    ("RequestAuthentication", JWT + "fromHeaders: [{name: a, prefix: 'a,'}]", 3, "…prefix", '"a,"', "pattern"),
    ("RequestAuthentication", JWT + "fromHeaders: [{name: Host}]", 3, "…[0].name", "'Host' is given", "connection"),
    ("RequestAuthentication", JWT + "fromParams: ['']", 3, "…fromParams[0]", '"" is given', "1 char"),
    ("RequestAuthentication", JWT + "fromCookies: ['a;b']", 3, "…fromCookies[0]", '"a;b" is given', "pattern"),
    ("RequestAuthentication", JWT + "outputPayloadToHeader: a b", 3, "…outputPayloadToHeader", '"a b" is', "pattern"),
    ("RequestAuthentication", JWT + "outputPayloadToHeader: te", 3, "…outputPayloadToHeader", "'te' is", "connection"),
    (
        "RequestAuthentication",
        JWT + "outputClaimToHeaders: [{header: a}]",
        3,
        "…[0].claim",
        "nothing is given",
        "required",
    ),
    (
        "RequestAuthentication",
        JWT + "outputPayloadToHeader: X\n  outputClaimToHeaders: [{header: x, claim: a}]",
        4,
        "…outputClaimToHeaders",
        "'x' is given twice",
        "one source",
    ),
    ("RequestAuthentication", "require: true", 0, "require", "true is given", "jwtRules are needed"),
    ("PeerAuthentication", "mtls: {mode: MUTUAL}", 0, "mtls.mode", '"MUTUAL"', "'PERMISSIVE' or 'DISABLE'"),
    ("PeerAuthentication", "mtls: {mode: strict}", 0, "mtls.mode", '"strict"', "'UNSET', 'STRICT'"),
    ("PeerAuthentication", "portLevelMtls: {}", 0, "portLevelMtls", "{} is given", "at least 1"),
    ("PeerAuthentication", "portLevelMtls: {80: {mode: STRICT}}", 0, "portLevelMtls", "without a selector", "selected"),
    ("PeerAuthentication", PORT_LEVEL + "http: {mode: STRICT}", 2, "portLevelMtls.http", "'http'", "1 to 65535"),
    ("PeerAuthentication", PORT_LEVEL + "080: {mode: STRICT}", 2, "portLevelMtls.080", "'080'", "1 to 65535"),
    ("PeerAuthentication", PORT_LEVEL + "65536: {mode: STRICT}", 2, "portLevelMtls.65536", "'65536'", "1 to 65535"),
    ("PeerAuthentication", PORT_LEVEL + "80: {mode: OFF}", 2, "portLevelMtls.80.mode", "false", "'UNSET', 'STRICT'"),
    ("PeerAuthentication", PORT_LEVEL + "80: STRICT", 2, "portLevelMtls.80", '"STRICT"', "object"),
    ("RegoPolicy", "module: package a", 0, "", "nothing is given", "required"),
    ("RegoPolicy", "entrypoint: a.b\nmodule: package a", 0, "entrypoint", '"a.b" is given', "pattern"),
    ("RegoPolicy", "entrypoint: data.a.b", 0, "module", "no Rego is given", "a .rego file"),
    ("RegoPolicy", "entrypoint: data.a.b\nfiles: [a.json]", 0, "module", "no Rego is given", "a .rego file"),
    ("RegoPolicy", REGO + "files: [a.txt]", 2, "files[0]", "'a.txt' is given", "a .rego or a .json"),
    (
        "RegoPolicy",
        REGO + "timeout: 51ms\ntier: sidecar",
        2,
        "timeout",
        "51ms is given",
        "at most 50ms in the sidecar tier",
    ),
    ("RegoPolicy", REGO + "timeout: 11s\ntier: check", 2, "timeout", "11s is given", "at most 1000ms in the check"),
    ("RegoPolicy", REGO + "timeout: 2s", 2, "timeout", "2s is given", "at most 1000ms in the check"),
    ("RegoPolicy", REGO + "includeRequestBodyInCheck: {maxRequestBytes: 0}", 2, "…maxRequestBytes", "0 is given", "1"),
    (
        "RegoPolicy",
        REGO + "includeRequestBodyInCheck: {maxRequestBytes: 524289}",
        2,
        "…maxRequestBytes",
        "524289 is given",
        "at most 524288 in the check",
    ),
    (
        "RegoPolicy",
        REGO + "tier: sidecar\nincludeRequestBodyInCheck: {maxRequestBytes: 65537}",
        3,
        "…maxRequestBytes",
        "65537 is given",
        "at most 65536 in the sidecar",
    ),
    ("RegoPolicy", REGO + "protoDescriptor: a.txt", 2, "protoDescriptor", "'a.txt' is given", "a .pb file"),
    ("RegoPolicy", REGO + "timeout: 0ms", 2, "timeout", '"0ms" is given', "pattern"),
    ("RegoPolicy", REGO + "onError: ignore", 2, "onError", '"ignore" is given', "'deny' or 'allow'"),
    ("RegoPolicy", REGO + "data: {a: .nan}", 2, "data", "not finite", "JSON"),
    ("RegoPolicy", REGO + "data: {a: [.inf]}", 2, "data", "not finite", "JSON"),
    ("RegoPolicy", BUNDLE + "{}", 1, "bundle", "no place is given", "one of file, oci and url"),
    ("RegoPolicy", BUNDLE + "{file: a, url: b}", 1, "bundle", "file and url is given", "one of file, oci and url"),
    ("RegoPolicy", BUNDLE + "{url: 'ftp://x/'}", 1, "bundle.url", "'ftp://x/' is given", "https or http"),
    ("RegoPolicy", BUNDLE + "{url: 'https://a:b@x/'}", 1, "bundle.url", "is given", "without a user"),
    ("RegoPolicy", BUNDLE + "{file: a, timeout: 1s}", 1, "bundle.timeout", "it is given", "for url"),
    ("RegoPolicy", BUNDLE + "{file: a, polling: {}}", 1, "bundle.polling", "it is given", "for url"),
    ("RegoPolicy", BUNDLE + "{url: 'https://x/', timeout: 61s}", 1, "bundle.timeout", "61s is given", "at most 60s"),
    (
        "RegoPolicy",
        POLLING % "{minDelay: 5s, maxDelay: 4s}",
        1,
        "bundle.polling.minDelay",
        "5s is given",
        "at least 1s",
    ),
    ("RegoPolicy", POLLING % "{minDelay: 5ms}", 1, "bundle.polling.minDelay", "5ms is given", "at least 1s"),
    (
        "RegoPolicy",
        POLLING % "{longPollingTimeout: 601s}",
        1,
        "bundle.polling.longPollingTimeout",
        "601s",
        "1s to 600s",
    ),
    ("RegoPolicy", SIGNING % "{}", 1, "bundle.signing.keys", "nothing is given", "required"),
    ("RegoPolicy", SIGNING % "{keys: {k: secret}}", 1, "bundle.signing.keys.k", "a value that is not shown", "object"),
    ("RegoPolicy", SIGNING % "{keys: {}}", 1, "bundle.signing.keys", "not shown", "at least 1"),
    (
        "RegoPolicy",
        SIGNING % "{keys: {k: {algorithm: none, key: x}}}",
        1,
        "bundle.signing.keys.k.algorithm",
        "none",
        "'RS256', 'ES256' or 'HS256'",
    ),
    (
        "RegoPolicy",
        SIGNING % "{keys: {k: {algorithm: HS256, key: x}}}",
        1,
        "bundle.signing.keys.k.key",
        "less than 32 bytes",
        "32 bytes or more",
    ),
    ("RegoPolicy", SIGNING % "{keys: {k: {key: x}}}", 1, "bundle.signing.keys.k.key", "no public key in PEM", "RSA"),
    (
        "RegoPolicy",
        SIGNING % "{keyid: b, keys: {k: {algorithm: HS256, key: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}}}",
        1,
        "bundle.signing.keyid",
        "'b' is given",
        "one of the keys is expected: k",
    ),
    ("Service", "ports: [{port: 1, targetPort: 2}]", 0, "", "nothing is given", "required"),
    ("Service", "selector: {}\nports: [{port: 1, targetPort: 2}]", 0, "selector", "{} is given", "at least 1"),
    ("Service", PORTS + "port: 0\n  targetPort: 1", 2, "ports[0].port", "0 is given", "greater than or equal to 1"),
    ("Service", PORTS + "port: 1\n  targetPort: http", 3, "ports[0].targetPort", '"http" is given', "integer"),
    ("Service", PORTS + "port: 1\n  targetPort: 1.5", 3, "ports[0].targetPort", "1.5 is given", "integer"),
    ("Service", PORTS + "port: 1\n  targetPort: 1\n  protocol: UDP", 4, "ports[0].protocol", '"UDP"', "^TCP$"),
    ("Service", PORTS + "port: 1\n  targetPort: 1\n  nodePort: 1", 4, "ports[0].nodePort", "not taken", "Kubernetes"),
    (
        "Service",
        PORTS + "{port: 1, targetPort: 2}\n- {port: 1, targetPort: 3}",
        2,
        "ports[0].port",
        "1 is given twice",
        "given once",
    ),
    ("WorkloadEntry", "address: nowhere", 0, "address", "'nowhere' is given", "an IP address"),
    ("WorkloadEntry", "address: 1.1.1.1\nserviceAccount: A/b", 1, "serviceAccount", '"A/b" is given', "pattern"),
    ("WorkloadEntry", "address: 1.1.1.1\nweight: 1", 1, "weight", "not taken", "weights are not there yet"),
    ("WorkloadRegistration", "workload: a\ncommand: []", 1, "command", "[] is given", "at least 1"),
    ("WorkloadRegistration", "workload: a\ncommand: [a]\negres: []", 2, "egres", "unknown field", "mean egress?"),
]


@pytest.mark.parametrize(
    ("kind", "spec", "line", "field", "given", "allowed"),
    [pytest.param(*row, id=f"{row[0]} {row[3]} {row[4]} {number}") for number, row in enumerate(REFUSED)],
)
def test_a_mistake_is_told_with_its_place_what_was_given_and_what_is_allowed(
    problems_of: Problems, kind: str, spec: str, line: int, field: str, given: str, allowed: str
) -> None:
    problem = problems_of(a_yaml=document(kind, spec))[0]
    assert problem.file == "a.yaml"
    assert problem.field.endswith(field.lstrip("…"))
    assert problem.field.startswith("spec")
    assert given in problem.given
    assert allowed in problem.allowed
    if field in ("rules", "provider", "module") and "no" in given:
        assert problem.line in range(SPEC_LINE, SPEC_LINE + 2)
    else:
        assert problem.line == SPEC_LINE + line


def test_a_port_beyond_numbers_is_refused(problems_of: Problems) -> None:
    (problem,) = problems_of(a_yaml=document("AuthorizationPolicy", OPERATION + f"ports: ['{'9' * 5000}']"))
    assert problem.field == "spec.rules[0].to[0].operation.ports[0]"
    assert len(str(problem)) < 1000


HEADLESS = [
    ("[]\n", 1, "", "a list or a scalar is given"),
    ("text\n", 1, "", "a list or a scalar is given"),
    ("{}\n", 1, "kind", "'None' is given"),
    ("kind: AuthorisationPolicy\n", 1, "kind", "did you mean AuthorizationPolicy?"),
    ("kind: [a]\n", 1, "kind", "known are AuditPolicy"),
    ("kind: EnvoyFilter\n", 1, "kind", "EnvoyFilter is refused: it would change the proxy behind the policies' back"),
    ("kind: WasmPlugin\n", 1, "kind", "WasmPlugin is refused"),
    ("kind: Service\napiVersion: v2\n", 2, "apiVersion", "Service has the API version v1"),
    ("kind: Service\napiVersion: [v1]\n", 2, "apiVersion", "Service has the API version v1"),
    ("kind: PeerAuthentication\napiVersion: security.istio.io/v1\n", 1, "metadata", "the field is required"),
]


@pytest.mark.parametrize(("text", "line", "field", "says"), HEADLESS)
def test_what_is_no_known_resource_is_refused(
    problems_of: Problems, text: str, line: int, field: str, says: str
) -> None:
    problem = problems_of(a_yaml=text)[0]
    assert (problem.file, problem.line, problem.field) == ("a.yaml", line, field)
    assert says in str(problem)


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ("{name: A}", "metadata.name"),
        ("{name: a/b}", "metadata.name"),
        ("{name: a\u0307}", "metadata.name"),
        ('{name: "a\\n"}', "metadata.name"),
        (f"{{name: {'a' * 254}}}", "metadata.name"),
        ("{name: a, namespace: a.b}", "metadata.namespace"),
        ("{name: a, namespace: ''}", "metadata.namespace"),
        ("{name: a, labels: {a: 1}}", "metadata.labels.a"),
        ("{name: 1}", "metadata.name"),
        ("[]", "metadata"),
    ],
)
def test_names_that_kubernetes_would_refuse_are_refused(problems_of: Problems, metadata: str, field: str) -> None:
    text = f"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {metadata}\nspec: {{}}\n"
    (problem,) = problems_of(a_yaml=text)
    assert (problem.file, problem.line, problem.field) == ("a.yaml", 3, field)


def test_unknown_members_beside_the_spec_are_refused(problems_of: Problems) -> None:
    (problem,) = problems_of(a_yaml=document("PeerAuthentication", "{}") + "specs: {}\n")
    assert (problem.line, problem.field, problem.allowed) == (6, "specs", "did you mean spec?")


def test_what_a_cluster_adds_to_a_resource_is_passed_over(problems_of: Problems) -> None:
    metadata = "{name: x, uid: u, annotations: {a: b}, creationTimestamp: null, managedFields: [{}]}"
    text = document("PeerAuthentication", "{}").replace("{name: x, namespace: shop}", metadata)
    assert problems_of(a_yaml=text + "status: {conditions: []}\n") == []


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_every_api_version_of_istio_is_taken(problems_of: Problems, version: str) -> None:
    text = document("AuthorizationPolicy", "{}").replace("istio.io/v1", f"istio.io/{version}")
    assert problems_of(a_yaml=text) == []


def test_all_mistakes_of_all_files_are_told_at_once_in_their_order(problems_of: Problems) -> None:
    wrong = document("AuthorizationPolicy", "rulez: []\nactoin: DENY")
    problems = problems_of(b_yaml=wrong, a_yaml=wrong + "---\n" + wrong)
    assert [(each.file, each.line) for each in problems] == [
        ("a.yaml", 5), ("a.yaml", 6), ("a.yaml", 12), ("a.yaml", 13), ("b.yaml", 5), ("b.yaml", 6),
    ]  # fmt: skip
