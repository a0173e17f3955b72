"""What the operators mean, in plain float32 torch: the kernels' tests compare against these."""
