"""Who speaks: teacher, student, control and judge are all just a model."""
