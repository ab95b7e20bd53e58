"""Sparse training: penalties on the student's own weights, which bring what can be pruned near zero while it learns.

No teacher is asked and no example is read: each is one number for the whole network, a sum over its weights, and `weight` is the papers' lambda.
"""
