"""Making data folders of public data sets."""
