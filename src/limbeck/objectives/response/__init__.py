"""Match what the teacher answers.

Every loss here takes logits `[..., C]` of student and teacher and gives one number per prediction, `[...]`; it computes in float32 at least, and sends no
gradient into the teacher.
"""
