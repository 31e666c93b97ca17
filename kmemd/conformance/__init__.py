"""Comparison of the model with captures of a real kernel: what ``kmemd conformance DIR`` runs."""
