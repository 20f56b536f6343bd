"""A1111's API in words of ours and back; what is global there belongs to the API key here."""
