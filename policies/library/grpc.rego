# METADATA
# title: Methods of gRPC services
# description: >-
#   A call's path is `/PACKAGE.SERVICE/METHOD`. A table has the methods of each service, as in
#   `{"bookshop.v1.Catalog": ["Get", "List*"]}`: a star at the end is any rest.
package peltast.grpc

import rego.v1

# service is the full name of the service that is called, and method its method.
service := input.parsed_path[0] if is_call

method := input.parsed_path[1] if is_call

# is_call holds for gRPC, by its method, path and content type.
is_call if {
	input.attributes.request.http.method == "POST"
	is_content_type(input.attributes.request.http.headers["content-type"])
	count(input.parsed_path) == 2
	every name in input.parsed_path {
		name != ""
	}
}

is_content_type(type) if type == "application/grpc"

is_content_type(type) if startswith(type, "application/grpc+")

is_content_type(type) if startswith(type, "application/grpc;")

# calls(table) holds if the table has the method that is called.
calls(table) if {
	some name in table[service]
	is_name(name, method)
}

is_name(name, called) if {
	not endswith(name, "*")
	name == called
}

is_name(name, called) if {
	endswith(name, "*")
	startswith(called, trim_suffix(name, "*"))
}
