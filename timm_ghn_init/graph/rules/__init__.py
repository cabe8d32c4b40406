"""The meaning of operators in the primitive graph: one function each, named by the table in `primitives.py`."""
