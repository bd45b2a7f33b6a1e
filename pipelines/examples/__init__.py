"""Model modules that come with Edgeline."""
