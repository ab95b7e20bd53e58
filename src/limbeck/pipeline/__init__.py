"""Assembly: recipes, stages, runs, and the easy functions."""
