"""Match how the examples of a batch lie to each other: features of any shape, flattened to `[N, D]`; D may differ between the two sides.

Every loss here compares the student's N x N (or N x N x N) relations with the teacher's and gives a scalar of the batch; nothing is learnt.
"""
