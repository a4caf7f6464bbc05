"""Before anything heavy is loaded: what a recipe will need, and whether this machine has it."""
