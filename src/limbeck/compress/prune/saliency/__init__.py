"""What it costs to take a weight away."""
