"""Other people's trainers with prefkit's head: a room for each."""
