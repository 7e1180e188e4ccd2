"""The SDK of procvision, as its users have it."""
