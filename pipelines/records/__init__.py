"""What runs leave behind in a root: events, metrics, lineage, history."""
