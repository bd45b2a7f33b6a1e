"""Edgeline's programs: which components run, in which order, on which data, and the command line."""
