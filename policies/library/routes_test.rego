package peltast.routes_test

import data.peltast.routes
import rego.v1

table := [
	{"methods": ["GET", "HEAD"], "path": "/books/*"},
	{"methods": ["POST"], "path": "/orders"},
	{"path": "/public/**"},
	{"methods": ["GET"], "path": "/"},
]

asked(method, path) if {
	routes.matches(table) with input as {
		"attributes": {"request": {"http": {"method": method}}},
		"parsed_path": split(trim_prefix(path, "/"), "/"),
	}
}

test_a_row_has_methods_and_a_path if {
	asked("GET", "/books/7")
	asked("HEAD", "/books/7")
	not asked("POST", "/books/7")
	asked("POST", "/orders")
	not asked("GET", "/orders")
	asked("GET", "/")
}

test_a_star_is_one_segment_that_is_there if {
	not asked("GET", "/books")
	not asked("GET", "/books/")
	not asked("GET", "/books/7/8")
}

test_two_stars_are_any_number_of_segments if {
	asked("DELETE", "/public")
	asked("GET", "/public/")
	asked("GET", "/public/a/b/c")
	not asked("GET", "/publicity")
}

test_a_path_that_is_in_no_row if {
	not asked("GET", "/books2/7")
	not asked("GET", "/orders/1")
	not asked("get", "/books/7")
}

test_a_star_in_the_request_is_a_letter if not routes.has_path("/a", ["*"])

test_everything if {
	routes.has_path("/**", [""])
	routes.has_path("/**", ["a", "b"])
}
