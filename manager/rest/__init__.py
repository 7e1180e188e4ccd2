"""The REST door: `/v1`, its OpenAPI document, health and metrics."""
