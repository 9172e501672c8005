"""Is an answer right? Found in a solution, compared by its meaning, in workers with a limit."""
