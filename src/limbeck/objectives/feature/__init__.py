"""Match what the teacher computes on the way: features `[N, D]`, `[N, T, D]` or `[N, D, H, W]`, projected where the shapes differ."""
