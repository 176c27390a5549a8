"""One file per topic of the training text; each turns a random generator and a split into a document."""
