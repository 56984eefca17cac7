"""The channel graph: which channels of a network go together, found by running it on labels."""
