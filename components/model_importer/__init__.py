"""Brings a model that was trained elsewhere."""
