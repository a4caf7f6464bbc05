"""How a question is put to each kind of service, and how its answer is read."""
