"""Transparency logs as C2SP describes them: tiles, checkpoints, proofs. Pure: no network, clock or disk."""
