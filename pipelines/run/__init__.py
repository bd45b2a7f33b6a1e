"""One run on this machine, from request to outcome."""
