package peltast.break_glass_test

import data.peltast.break_glass
import rego.v1

callers := ["spiffe://cluster.local/ns/ops/sa/ada"]

asked(principal, headers) := {"attributes": {
	"source": {"principal": principal},
	"request": {"http": {"headers": headers}},
}}

because(reason) := by_ada({"x-break-glass-reason": reason})

by_ada(headers) := asked("spiffe://cluster.local/ns/ops/sa/ada", headers)

test_a_reason_opens if {
	break_glass.is_open(callers) with input as because("orders are stuck, INC-4711")
	decision := break_glass.decision(callers) with input as because("orders are stuck, INC-4711")
	decision.allowed
	decision.headers == {"x-break-glass": "used"}
}

test_no_reason_opens_nothing if {
	decision := break_glass.decision(callers) with input as by_ada({})
	not decision.allowed
	contains(decision.body, "x-break-glass-reason")
}

test_a_short_or_empty_reason_opens_nothing if {
	not break_glass.is_open(callers) with input as because("because")
	not break_glass.is_open(callers) with input as because("                    ")
	not break_glass.is_open(callers) with input as because("")
}

test_a_reason_has_an_end if {
	fifty := "01234567890123456789012345678901234567890123456789"
	break_glass.is_open(callers) with input as because(concat("", [fifty, fifty, fifty, fifty]))
	not break_glass.is_open(callers) with input as because(concat("", [fifty, fifty, fifty, fifty, "0"]))
}

test_others_get_nothing_and_are_told_nothing if {
	decision := break_glass.decision(callers) with input as asked(
		"spiffe://cluster.local/ns/ops/sa/eve",
		{"x-break-glass-reason": "orders are stuck, INC-4711"},
	)
	decision == {"allowed": false}
}

test_plaintext_gets_nothing if {
	plaintext := {"attributes": {"request": {"http": {"headers": {"x-break-glass-reason": "orders are stuck"}}}}}
	decision := break_glass.decision(callers) with input as plaintext
	decision == {"allowed": false}
}
