"""Match where the teacher looks: activation and gradient maps, the attention of transformers and relations of its vectors, places of its own choosing."""
