"""What clients speak to: HTTP over the store. Accepting a job makes it durable; a worker draws it. No torch."""
