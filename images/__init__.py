"""Recipes of kernel images."""
