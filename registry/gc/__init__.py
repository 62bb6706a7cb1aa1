"""Online garbage collection: what no manifest needs is condemned, and removed a grace period later if nobody has asked
for it again. Nothing stops meanwhile, and nothing is locked.

What is kept:

- Every manifest with a tag, and every manifest at all unless the collector is told to remove untagged ones.
- Then an untagged manifest stays while a manifest that stays lists it (an index) or is its subject (a referrer: a
  signature, an attestation), and while it is younger than the grace period. A referrer whose subject is not in the
  repository is an untagged manifest like any other: kept, unless untagged ones are removed.
- Every blob that a manifest names, in the repositories whose manifests name it, and every blob pushed, mounted or
  asked for within the grace period.

An object is removed only if it was condemned at least one grace period before the cycle that removes it began, nothing
needs it in that cycle, and it is still the very object that was condemned. The grace period must be longer than the
longest push, and than the processing of any one request: what a client was told exists must not vanish before its
manifest arrives. It may be zero only while nobody pushes.
"""
