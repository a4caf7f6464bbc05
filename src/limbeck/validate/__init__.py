"""Student against teacher and control: metrics, paired intervals, verdicts."""
