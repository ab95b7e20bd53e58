"""What a student can be made to match: the task's own targets, a teacher's answers, a teacher's features."""
