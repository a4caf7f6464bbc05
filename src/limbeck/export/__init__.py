"""Out into the world: the student's weights, its card, and the report of the run."""
