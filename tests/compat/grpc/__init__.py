"""The real client of cuvis.ai against the gRPC front."""
