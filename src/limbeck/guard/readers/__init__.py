"""Logs as they lie → blocks of columns under canonical names; one file a format."""
