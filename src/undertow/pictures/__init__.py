"""Pictures: as files, by their names, as fields of requests, and what their pixels mean."""
