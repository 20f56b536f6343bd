"""Jobs that survive: a database that API processes and workers share (SQLite, or PostgreSQL by URL).

`store.py` is the whole of it; `records.py` has what it returns and raises, without SQL. Functions of one kind of change
are in a file each and take a connection within a transaction, which `database.py` opens.
"""
