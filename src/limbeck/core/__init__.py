"""The words that every part speaks: knowledge, tasks, teachers, objectives, schemes, artifacts."""
