"""Tests of the engine loop; they run in the compile and in the serving environment."""
