"""The real clients of other systems against a running Moorage. `make compat` runs all of it, `make test` what is not `full`."""
