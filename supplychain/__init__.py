"""Trust in an artifact: signatures over its manifest, and the policy that says whose signature is required."""
