"""What people run: the `quire` command."""
