"""``peltast demo``: the bookshop under requests and attacks, with what was decided and why."""
