"""When jobs will be done: what units of work cost here, and a simulation of the schedule with it. No torch."""
