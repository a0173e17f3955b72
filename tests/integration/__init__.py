"""Tests of a compiled model in the engine loop."""
