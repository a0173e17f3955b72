"""Benchmarks of the CUDA kernels against their goals and against named baselines: `python -m plugins.bench.cuda`."""
