"""Benchmarks of single operators, each against a named baseline on the same data."""
