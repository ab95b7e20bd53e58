"""The loop, the runtime and the checkpoint: the only place that imports Lightning Fabric."""
