"""May we learn from this teacher, for this purpose? Asked before the first answer."""
