"""Data, how a model is asked about them, its own loss and its score, by modality."""
