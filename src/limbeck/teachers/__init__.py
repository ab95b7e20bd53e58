"""Where the knowledge comes from."""
