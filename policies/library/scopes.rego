# METADATA
# title: Scopes of tokens
# description: >-
#   What a verified token's `scope` grants (RFC 6749 section 3.3), from a header that a RequestAuthentication's
#   `outputClaimToHeaders` fills. A granted `books:*` covers every scope that begins with `books:`.
package peltast.scopes

import rego.v1

# granted(text) is the set of scopes that `text` names, with spaces between them.
granted(text) := {scope | some scope in split(text, " "); scope != ""}

# covers(text, needed) holds if a granted scope is `needed`, or covers it.
covers(text, needed) if needed in granted(text)

covers(text, needed) if {
	some scope in granted(text)
	endswith(scope, ":*")
	startswith(needed, trim_suffix(scope, "*"))
}

# covers_all(text, needed) holds if every scope of `needed` is covered, and there is one.
covers_all(text, needed) if {
	count(needed) > 0
	every scope in needed {
		covers(text, scope)
	}
}

# covers_any(text, needed) holds if one of the scopes of `needed` is covered.
covers_any(text, needed) if {
	some scope in needed
	covers(text, scope)
}
