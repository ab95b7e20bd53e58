"""Match texts whose tokens are not the teacher's: by rank of probability, or by the bytes that tokens spell."""
