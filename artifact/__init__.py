"""The thing that travels: references, digests, manifests, weights, and the clients that move them.

Nothing here knows an engine, a server or a policy.
"""
