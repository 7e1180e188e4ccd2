"""The real client of inference.sh, sync and async, against the front."""
