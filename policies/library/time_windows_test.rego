package peltast.time_windows_test

import data.peltast.time_windows
import rego.v1

office := {"days": ["Monday", "Friday"], "from": "09:00", "to": "17:30", "zone": "Europe/Berlin"}

night := {"days": ["Saturday"], "from": "22:00", "to": "06:00"}

at(window, text) if time_windows.is_open_at([window], time.parse_rfc3339_ns(text))

test_a_window_has_days_and_hours if {
	at(office, "2026-11-23T09:00:00+01:00")
	at(office, "2026-11-23T17:29:59+01:00")
	not at(office, "2026-11-23T08:59:59+01:00")
	not at(office, "2026-11-23T17:30:00+01:00")
	not at(office, "2026-11-24T10:00:00+01:00")
}

test_hours_are_of_the_zone if {
	at(office, "2026-11-23T08:30:00Z")
	not at(office, "2026-11-23T17:00:00Z")
	at(office, "2026-07-20T07:30:00Z")
	not at(office, "2026-07-20T06:30:00Z")
}

test_a_night_belongs_to_the_day_that_it_begins_on if {
	at(night, "2026-11-21T23:00:00Z")
	at(night, "2026-11-22T05:59:00Z")
	not at(night, "2026-11-22T06:00:00Z")
	not at(night, "2026-11-22T23:00:00Z")
	not at(night, "2026-11-21T05:00:00Z")
}

test_days_and_zone_may_be_left_out if {
	at({"from": "00:00", "to": "24:00"}, "2026-11-22T23:59:00Z")
	at({"from": "09:00", "to": "10:00"}, "2026-11-22T09:30:00Z")
	not at({"from": "09:00", "to": "10:00"}, "2026-11-22T10:30:00Z")
}

test_a_window_that_ends_when_it_begins_is_a_whole_day if {
	at({"days": ["Sunday"], "from": "08:00", "to": "08:00"}, "2026-11-22T08:00:00Z")
	at({"days": ["Sunday"], "from": "08:00", "to": "08:00"}, "2026-11-23T07:59:00Z")
	not at({"days": ["Sunday"], "from": "08:00", "to": "08:00"}, "2026-11-22T07:59:00Z")
}

test_what_is_no_time_opens_nothing if {
	not at({"from": "9:00", "to": "17:00"}, "2026-11-22T10:00:00Z")
	not at({"from": "09:00"}, "2026-11-22T10:00:00Z")
	not at({"from": "09:00", "to": "25:00"}, "2026-11-22T10:00:00Z")
}

test_one_of_several_windows_is_enough if {
	time_windows.is_open_at([office, night], time.parse_rfc3339_ns("2026-11-22T01:00:00Z"))
	not time_windows.is_open_at([], time.parse_rfc3339_ns("2026-11-22T01:00:00Z"))
}

test_now if {
	time_windows.is_open([office]) with time.now_ns as 1795424400000000000
	not time_windows.is_open([office]) with time.now_ns as 1795510800000000000
}
