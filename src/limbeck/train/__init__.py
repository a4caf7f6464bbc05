"""Answers to student: packing, divergences, the student's start and the training loop."""
