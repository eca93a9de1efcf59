"""The store: PostgreSQL, its schema, and an embedded one."""
