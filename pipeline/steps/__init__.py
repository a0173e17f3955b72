"""The stages of a build, one file each: what decides a stage's result, and what it does.

Each file gives a function from a `BuildContext` to a `pipeline.stages.Stage`.
"""
