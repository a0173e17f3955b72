"""Graphs in 16-bit floating point: what can be converted (`plan.py`), the converted graph (`convert.py`), the same
numbers computed in float32 (`emulate.py`), and which nodes must stay in float32 (`search.py`)."""
