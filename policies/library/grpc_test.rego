package peltast.grpc_test

import data.peltast.grpc
import rego.v1

table := {"bookshop.v1.Catalog": ["Get", "List*"], "grpc.health.v1.Health": ["*"]}

asked(path, type) := {
	"attributes": {"request": {"http": {"method": "POST", "headers": {"content-type": type}}}},
	"parsed_path": path,
}

called(service, method) if grpc.calls(table) with input as asked([service, method], "application/grpc")

test_a_call_has_a_service_and_a_method if {
	grpc.service == "bookshop.v1.Catalog" with input as asked(["bookshop.v1.Catalog", "Get"], "application/grpc+proto")
	grpc.method == "Get" with input as asked(["bookshop.v1.Catalog", "Get"], "application/grpc;charset=utf-8")
}

test_methods_are_by_name_or_by_how_they_begin if {
	called("bookshop.v1.Catalog", "Get")
	called("bookshop.v1.Catalog", "ListBooks")
	called("grpc.health.v1.Health", "Watch")
	not called("bookshop.v1.Catalog", "GetAll")
	not called("bookshop.v1.Catalog", "Delete")
	not called("bookshop.v1.Orders", "Get")
}

test_a_name_is_as_it_is_written if {
	not called("bookshop.v1.catalog", "Get")
	not called("bookshop.v1.Catalog", "get")
}

test_what_is_no_call_calls_nothing if {
	not grpc.is_call with input as asked(["bookshop.v1.Catalog", "Get"], "application/json")
	not grpc.is_call with input as asked(["bookshop.v1.Catalog", "Get"], "application/grpc-web")
	not grpc.is_call with input as asked(["bookshop.v1.Catalog"], "application/grpc")
	not grpc.is_call with input as asked(["bookshop.v1.Catalog", ""], "application/grpc")
	not grpc.is_call with input as asked(["bookshop.v1.Catalog", "Get", "x"], "application/grpc")
	not grpc.calls(table) with input as asked(["bookshop.v1.Catalog", "Get"], "text/plain")
}
