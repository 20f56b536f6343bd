"""Memory: what work needs of it, how a budget is kept, and what is done when it runs out."""
