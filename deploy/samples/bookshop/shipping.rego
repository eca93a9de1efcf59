package bookshop.shipping

import rego.v1

default allow := false

allow if {
	region := input.attributes.request.http.headers["x-region"]
	data.regions[region].ships
}
