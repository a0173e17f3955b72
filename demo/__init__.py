"""The demo language model: its text, its training and the trained weights in `demo/model`."""
