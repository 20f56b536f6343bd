"""`python -m undertow.serving.worker --settings FILE`: the whole service, or one of its parts (`child.py`)."""

from undertow.serving.worker.process import main

if __name__ == "__main__":
    raise SystemExit(main())
