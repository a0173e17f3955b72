"""Tests of the algorithms against brute force and float64 definitions."""
