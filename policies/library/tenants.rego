# METADATA
# title: Tenants, by the namespaces of their workloads
# description: >-
#   Whose workload is asking, and whether it keeps to what is its own. A table has the namespaces of each tenant, as in
#   `{"acme": ["acme", "acme-jobs"]}`.
package peltast.tenants

import rego.v1

# namespace_of(principal) is the namespace in a SPIFFE ID of Istio's form.
namespace_of(principal) := parts[4] if {
	parts := split(principal, "/")
	count(parts) == 7
	[parts[0], parts[1], parts[3], parts[5]] == ["spiffe:", "", "ns", "sa"]
}

# caller(table) is the set of the tenants whose workload is asking: one, if the table gives no namespace twice.
caller(table) := {tenant |
	namespace := namespace_of(input.attributes.source.principal)
	some tenant, namespaces in table
	namespace in namespaces
}

# owns(table, tenant) holds if the caller is of `tenant`, and of no other.
owns(table, tenant) if caller(table) == {tenant}

# keeps_to_path(table) holds if the path begins `/tenants/TENANT/` with the caller's tenant.
keeps_to_path(table) if {
	input.parsed_path[0] == "tenants"
	owns(table, input.parsed_path[1])
}

# keeps_to_host(table) holds if the host begins with the name of the caller's tenant and a dot.
keeps_to_host(table) if owns(table, split(input.attributes.request.http.host, ".")[0])
