"""Training of class-conditional pixel models: data, objective, loop, checkpoints, evaluation."""
