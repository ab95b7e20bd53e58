"""Match how things hang together: the examples of a batch as a graph, and the neighbourhoods of a graph that is given."""
