"""What is due on a machine with a GPU."""
