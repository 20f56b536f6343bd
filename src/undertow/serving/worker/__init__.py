"""Workers: processes that draw jobs, and the supervisor that keeps them and the API running. Only here is torch."""
