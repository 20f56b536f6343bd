"""How much memory and time work takes, known before it is begun, and what to do about it."""
