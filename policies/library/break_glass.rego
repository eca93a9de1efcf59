# METADATA
# title: Break-glass with a reason
# description: >-
#   Access that is against the rules, for some callers, if they say why in the header `x-break-glass-reason`. Record the
#   header by an AuditPolicy: the reason is for whoever reads the log.
package peltast.break_glass

import rego.v1

shortest_reason := 10

longest_reason := 200

# reason is what the caller says.
reason := trim_space(input.attributes.request.http.headers["x-break-glass-reason"])

# is_open(callers) holds if the caller's SPIFFE ID is one of `callers`, and a reason of 10 to 200 characters is given.
is_open(callers) if {
	is_one_of(callers)
	count(reason) >= shortest_reason
	count(reason) <= longest_reason
}

# decision(callers) allows with the header `x-break-glass: used` for the application and the caller, or says what is
# missing.
decision(callers) := {
	"allowed": true,
	"headers": {"x-break-glass": "used"},
	"response_headers_to_add": {"x-break-glass": "used"},
} if {
	is_open(callers)
}

decision(callers) := {
	"allowed": false,
	"body": "break-glass access needs a header x-break-glass-reason of 10 to 200 characters\n",
} if {
	is_one_of(callers)
	not is_open(callers)
}

decision(callers) := {"allowed": false} if not is_one_of(callers)

# A rule of its own: what is undefined behind a `not` makes OPA pass the whole expression over.
is_one_of(callers) if input.attributes.source.principal in callers
