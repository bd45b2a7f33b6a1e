"""The user's model module: where it lies, its digest, its hooks."""
