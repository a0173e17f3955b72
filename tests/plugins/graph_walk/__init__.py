"""Tests of plugins/graph_walk."""
