"""The distribution API over HTTP: each module is one group of endpoints, or one thing that all of them need."""
