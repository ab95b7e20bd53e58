"""The words that every part speaks: knowledge, tasks, teachers, objectives, schemes, artifacts."""

VERSION = "0.1.0"
