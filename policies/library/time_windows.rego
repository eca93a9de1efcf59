# METADATA
# title: Windows of time
# description: >-
#   A window is written as in `{"days": ["Monday", "Tuesday"], "from": "09:00", "to": "17:30", "zone": "Europe/Berlin"}`.
#   Without days it is for all of them, and without a zone it is in UTC. One that ends before it begins ends on the next
#   day; one that ends when it begins is a whole day.
package peltast.time_windows

import rego.v1

# is_open(windows) holds if now is in one of `windows`.
is_open(windows) if is_open_at(windows, time.now_ns())

# is_open_at(windows, ns) holds if a time, in nanoseconds since 1970, is in one of `windows`.
is_open_at(windows, ns) if {
	some window in windows
	is_within(window, ns)
}

# Of a window that is over midnight the first part is of its day, and the second of the day after.
is_within(window, ns) if {
	is_on(window, ns)
	minute_of(window, ns) >= minutes(window.from)
	before_end(window, minute_of(window, ns))
}

is_within(window, ns) if {
	minutes(window.to) <= minutes(window.from)
	is_on(window, time.add_date(ns, 0, 0, -1))
	minute_of(window, ns) < minutes(window.to)
}

before_end(window, minute) if minute < minutes(window.to)

before_end(window, _) if minutes(window.to) <= minutes(window.from)

is_on(window, _) if not window.days

is_on(window, ns) if time.weekday([ns, zone(window)]) in window.days

minute_of(window, ns) := (hour * 60) + minute if [hour, minute, _] := time.clock([ns, zone(window)])

zone(window) := object.get(window, "zone", "UTC")

# minutes(clock) is the minute of the day that a time such as "09:00" says, or "24:00".
minutes(clock) := (two_digits(hour) * 60) + two_digits(minute) if {
	regex.match(`^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$`, clock)
	[hour, minute] := split(clock, ":")
}

# No number begins with a zero.
two_digits(text) := to_number(concat("", ["1", text])) - 100
