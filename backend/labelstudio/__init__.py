"""Label Studio's API, its label configuration, and its regions."""
