"""Transparency logs as C2SP specifies them: notes, checkpoints, cosignatures, tiles, proofs."""
