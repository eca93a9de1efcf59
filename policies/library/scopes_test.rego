package peltast.scopes_test

import data.peltast.scopes
import rego.v1

test_scopes_are_words if {
	scopes.granted("books:read orders:write") == {"books:read", "orders:write"}
	scopes.granted("  books:read ") == {"books:read"}
	scopes.granted("") == set()
}

test_a_scope_covers_itself if {
	scopes.covers("books:read", "books:read")
	not scopes.covers("books:read", "books:write")
	not scopes.covers("books:read", "books")
	not scopes.covers("", "books:read")
}

test_a_star_covers_what_is_below if {
	scopes.covers("books:*", "books:read")
	scopes.covers("books:*", "books:covers:read")
	not scopes.covers("books:*", "bookshop:read")
	not scopes.covers("*", "books:read")
	not scopes.covers("books*", "books:read")
}

test_a_needed_star_is_no_pattern if not scopes.covers("books:read", "books:*")

test_all_and_any if {
	scopes.covers_all("a:read b:*", ["a:read", "b:write"])
	not scopes.covers_all("a:read", ["a:read", "b:write"])
	scopes.covers_any("a:read", ["a:read", "b:write"])
	not scopes.covers_any("c:read", ["a:read", "b:write"])
}

test_nothing_needed_is_nothing_covered if {
	not scopes.covers_all("a:read", [])
	not scopes.covers_any("a:read", [])
}
