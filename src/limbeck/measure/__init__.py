"""What was kept and what was lost: size, latency, memory, energy, fidelity, and how sure the figures are."""
