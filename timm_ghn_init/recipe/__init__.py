"""Section 3 of the paper: what is done with a prediction."""
