"""The doctor: rules that measure what is wrong with a model, a request or a machine, and say what helps."""
