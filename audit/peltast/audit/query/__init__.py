"""Reading the store: questions as values, their SQL, and their answers."""
