"""What quantizing costs: an engine beside float32 on text, sentences or arrays that nothing was calibrated on.

`heldout.py` gives the data, `subject.py` runs a graph, `language.py`, `sentences.py` and `arrays.py` compare decoders,
encoders and models of named tensors, `acceptance.py` judges, `picture.py` draws.
"""
