"""What a process does to stores until it is done or killed: python -m tests.serving.store_process ROLE NAME URL...

Each line that it prints is something that it was promised.
"""

import sys

from tests.serving.jobs_for_tests import a_job, a_result, everything
from undertow.serving.store.store import Store


def main(role: str, name: str, *urls: str) -> None:
    stores = [Store.open(url) for url in urls]
    print("ready", flush=True)
    sys.stdin.readline()
    for store in stores:
        if role == "claim":
            claim_all(store, name)
        else:
            submit_and_publish(store, name)
        store.close()


def claim_all(store: Store, name: str) -> None:
    while any(entry.worker is None for entry in store.queue()):
        for claim in store.claim(name, lambda waiting: everything(waiting)[:2], 300.0):
            print(claim.job.id, claim.fence, flush=True)


def submit_and_publish(store: Store, name: str) -> None:
    """Until it is killed."""
    number = 0
    while True:
        number += 1
        job = store.submit(a_job(f"{name} {number}", idempotency_key=str(number))).job
        print("accepted", job.id, flush=True)
        for claim in store.claim(name, everything, 300.0):
            if store.publish(claim, a_result(f"{number:064x}")):
                print("published", claim.job.id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
