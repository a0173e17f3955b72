"""Measurements, one command each. Everything is a ratio of two things run in alternation in one session."""
