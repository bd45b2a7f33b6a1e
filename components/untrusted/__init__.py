"""Reads model files of unknown authors: nothing in them is built, loaded or run before it was checked."""
