"""Few numbers for many weights, and few bits for each."""
