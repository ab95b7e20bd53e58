"""Small reference architectures by their published definitions; a user's own go by `python:package.module:name`.

Every model takes one example's shape and the count of classes and gives logits `[N, C]`. The ends of its stages have names, which a feature objective may read:
`layer1`, `layer2`, `layer3`, then `pool [N, D]` where there is one, and `head [N, C]`.
"""
