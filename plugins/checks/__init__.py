"""What every kernel must get right: one module an operator, the same cases under the emulator and on a GPU."""
