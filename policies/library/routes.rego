# METADATA
# title: Tables of methods and paths
# description: A path is written as in `/books/*`; `*` is one segment, and `**`, at the end, any number of them.
package peltast.routes

import rego.v1

# matches(table) holds if a row of `table` has the request's method and path. A row without methods has all of them.
matches(table) if {
	some row in table
	has_method(row, input.attributes.request.http.method)
	has_path(row.path, input.parsed_path)
}

has_method(row, method) if method in row.methods

has_method(row, _) if not row.methods

# has_path(pattern, segments) holds if a path, as the list of its segments, is one of those that `pattern` means.
has_path(pattern, segments) if {
	not endswith(pattern, "/**")
	wanted := split(trim_prefix(pattern, "/"), "/")
	count(wanted) == count(segments)
	begins_with(segments, wanted)
}

has_path(pattern, segments) if {
	endswith(pattern, "/**")
	wanted := array.slice(split(pattern, "/"), 1, strings.count(pattern, "/"))
	count(wanted) <= count(segments)
	begins_with(segments, wanted)
}

begins_with(segments, wanted) if {
	every place, name in wanted {
		is_segment(name, segments[place])
	}
}

is_segment("*", segment) if segment != ""

is_segment(name, segment) if {
	name != "*"
	name == segment
}
