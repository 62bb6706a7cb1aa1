"""Uses models: pulls them by digest, decides by policy, lays out their files, and runs engines behind one endpoint."""
