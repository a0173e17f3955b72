"""Slipway's operators: one schema and one reference body each, and a kernel for every place they run."""
