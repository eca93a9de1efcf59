package hours

import data.peltast.time_windows
import rego.v1

default decision := {"allowed": false, "http_status": 503, "body": "closed\n"}

decision := {"allowed": true} if time_windows.is_open(data.hours.counters[input.parsed_path[1]])
