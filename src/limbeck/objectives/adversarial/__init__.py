"""A discriminator learns to tell the teacher from the student, and the student to be taken for the teacher.

Each objective here is a player of its own, with a phase in every step and an optimizer: a scheme plays it as its `phases` say.
"""
