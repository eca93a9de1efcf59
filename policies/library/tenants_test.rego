package peltast.tenants_test

import data.peltast.tenants
import rego.v1

table := {"acme": ["acme", "acme-jobs"], "umbrella": ["umbrella", "shared"], "wayne": ["shared"]}

asked(namespace, path, host) := {
	"attributes": {
		"source": {"principal": sprintf("spiffe://cluster.local/ns/%s/sa/web", [namespace])},
		"request": {"http": {"host": host}},
	},
	"parsed_path": path,
}

test_a_namespace_is_read_from_a_spiffe_id if {
	tenants.namespace_of("spiffe://a.example/ns/acme/sa/web") == "acme"
	not tenants.namespace_of("spiffe://a.example/acme/web")
	not tenants.namespace_of("https://a.example/ns/acme/sa/web")
	not tenants.namespace_of("spiffe://a.example/ns/acme/sa/web/more")
	not tenants.namespace_of("")
}

test_a_tenant_keeps_to_its_paths if {
	tenants.keeps_to_path(table) with input as asked("acme-jobs", ["tenants", "acme", "bills"], "")
	not tenants.keeps_to_path(table) with input as asked("acme", ["tenants", "umbrella"], "")
	not tenants.keeps_to_path(table) with input as asked("acme", ["tenants"], "")
	not tenants.keeps_to_path(table) with input as asked("acme", ["acme"], "")
}

test_a_tenant_keeps_to_its_host if {
	tenants.keeps_to_host(table) with input as asked("acme", [""], "acme.shop.example:8443")
	not tenants.keeps_to_host(table) with input as asked("umbrella", [""], "acme.shop.example")
	not tenants.keeps_to_host(table) with input as asked("acme", [""], "acmeshop.example")
}

test_who_is_of_no_tenant_owns_nothing if {
	tenants.caller(table) == set() with input as asked("elsewhere", [""], "")
	not tenants.keeps_to_path(table) with input as asked("elsewhere", ["tenants", "acme"], "")
}

test_who_is_of_two_tenants_owns_nothing if {
	tenants.caller(table) == {"umbrella", "wayne"} with input as asked("shared", [""], "")
	not tenants.keeps_to_path(table) with input as asked("shared", ["tenants", "wayne"], "")
}

test_plaintext_is_of_no_tenant if {
	tenants.caller(table) == set() with input as {"attributes": {}, "parsed_path": [""]}
	not tenants.keeps_to_path(table) with input as {"attributes": {}, "parsed_path": ["tenants", "acme"]}
}
