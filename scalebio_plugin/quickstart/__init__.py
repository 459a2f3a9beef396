"""A run whose right answer is known: the planted problem, and the command that runs it."""
