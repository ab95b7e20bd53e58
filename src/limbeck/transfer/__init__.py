"""On which inputs the student is taught."""
