"""How much memory and time work takes, known before it is begun; how a budget is kept, and what is done when memory
runs out."""
