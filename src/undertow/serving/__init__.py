"""The service: requests of many clients in a store that survives, workers that draw them, and the APIs in front.

`jobs.py`, `failures.py` and `settings.py` are the words that every part speaks; `store/` keeps jobs, `worker/` draws
them, `api/` answers clients. Only `worker/` imports torch.
"""
