"""Instruments that look at the model and never change it."""
