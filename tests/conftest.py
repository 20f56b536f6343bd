"""What holds for every test."""

from hypothesis import settings

# Speed is measured in benchmarks/, never asserted: on a busy machine any example may take long.
settings.register_profile("undertow", deadline=None)
settings.load_profile("undertow")
