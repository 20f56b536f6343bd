"""Files of weights: found, identified, read strictly, and written."""
