"""Dead letters: what there is, how each one's task ended, running it again, removing it."""
