"""The live picture of a cluster: what is known (`picture`), where it comes from (`feed`), and how it looks (`drawing`, `screen`)."""
