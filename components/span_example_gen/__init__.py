"""Ingesting the spans of a data folder as Examples."""
