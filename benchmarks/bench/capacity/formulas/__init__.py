"""What each strategy makes models read, by its parameters. `costs` corrects these by what was measured."""
