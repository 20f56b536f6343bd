"""Adapters' files: found, opened once, kept in memory."""
