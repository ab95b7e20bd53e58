"""Fewer weights, channels, heads or layers."""
