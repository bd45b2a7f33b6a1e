"""Stops a run on data that break the schema or have drifted, before anything is trained on them."""
