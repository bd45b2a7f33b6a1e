"""Pushing the selected model to where devices take it from."""
