"""One file for each outside library that several parts need."""
