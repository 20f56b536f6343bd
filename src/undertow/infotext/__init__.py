"""What other programs write into pictures about how they were made, read into fields of a request, and written."""
