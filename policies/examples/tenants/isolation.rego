package bookshop.isolation

import data.peltast.routes
import data.peltast.tenants
import rego.v1

default decision := {"allowed": false, "body": "that is not yours\n"}

decision := {"allowed": true} if routes.matches(data.open)

decision := {"allowed": true} if tenants.keeps_to_path(data.partners)
