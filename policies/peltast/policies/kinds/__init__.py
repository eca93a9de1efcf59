"""The resource kinds: what operators write, parsed once into typed values.

Istio's kinds are read as Istio writes them. What Istio knows and Peltast does not take is refused by name, with the
reason, never passed over: see each model's `refused`.
"""
