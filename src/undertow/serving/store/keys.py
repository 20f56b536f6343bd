"""API keys: printed once and kept as a hash."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from hmac import compare_digest
from typing import Any

from sqlalchemy import insert, select, update

from undertow.errors import InvalidInput
from undertow.serving.store.database import Database, put_rows
from undertow.serving.store.records import ApiKey, Clock, Scope, StoreError
from undertow.serving.store.tables import Fields, api_keys, key_options

PREFIX = "ut_"
ALL = (Scope.SUBMIT, Scope.READ)

LAZY_S = 60.0
"""How old `last_used` may become before it is written again."""


class Keys:
    """The keys of a store."""

    def __init__(self, database: Database, clock: Clock):
        self._database = database
        self._clock = clock

    def create(
        self,
        name: str,
        scopes: Sequence[Scope] = ALL,
        *,
        max_queued: int | None = None,
        requests_per_minute: int | None = None,
    ) -> tuple[ApiKey, str]:
        """The key, and its secret, which is not kept: "ut_" and 43 characters. Errors: `InvalidInput`."""
        for argument, limit in (("max_queued", max_queued), ("requests_per_minute", requests_per_minute)):
            if limit is not None and limit < 1:
                raise InvalidInput(argument, limit, "at least 1", "leave it out for no limit of the key's own")
        if not scopes:
            raise InvalidInput("scopes", "empty", f"some of {', '.join(Scope)}")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(
            id="key_" + secrets.token_hex(8),
            name=name,
            scopes=tuple(dict.fromkeys(scopes)),
            created_at=self._clock(),
            max_queued=max_queued,
            requests_per_minute=requests_per_minute,
        )
        row = {
            "id": key.id,
            "name": name,
            "hash": hashed(secret),
            "scopes": list(key.scopes),
            "max_queued": max_queued,
            "requests_per_minute": requests_per_minute,
            "created_at": key.created_at,
        }
        self._database.write(lambda connection: connection.execute(insert(api_keys).values(row)), "key")
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, unless it was revoked."""
        given = hashed(secret)
        same = select(api_keys).where(api_keys.c.hash == given, api_keys.c.revoked_at.is_(None))
        row = self._database.read(lambda connection: connection.execute(same).mappings().first())
        if row is None or not compare_digest(row["hash"], given):
            return None
        self._used(row)
        return _key_of(row)

    def list(self) -> list[ApiKey]:
        """All, also those that were revoked, oldest first."""
        every = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        return [
            _key_of(row) for row in self._database.read(lambda connection: connection.execute(every).mappings().all())
        ]

    def revoke(self, id: str) -> bool:
        """Whether there was such a key to revoke; it is refused from now on."""
        one = update(api_keys).where(api_keys.c.id == id, api_keys.c.revoked_at.is_(None))
        revoked = one.values(revoked_at=self._clock()).returning(api_keys.c.id)
        return self._database.write(lambda connection: connection.execute(revoked).first(), "key") is not None

    def _used(self, row: Fields) -> None:
        now = self._clock()
        if row["last_used"] is not None and now - row["last_used"] < LAZY_S:
            return
        used = update(api_keys).where(api_keys.c.id == row["id"]).values(last_used=now)
        try:
            self._database.write(lambda connection: connection.execute(used), "key")
        except StoreError:  # what is shown of a key is no reason to refuse it
            return


class KeyOptions:
    """What each key set for itself, such as the model of a client that names one for all of its requests."""

    def __init__(self, database: Database):
        self._database = database

    def get(self, key: str) -> dict[str, Any]:
        one = select(key_options.c.options).where(key_options.c.key == key)
        return self._database.read(lambda connection: connection.execute(one).scalar()) or {}

    def put(self, key: str, options: Mapping[str, Any]) -> None:
        row = {"key": key, "options": dict(options)}
        self._database.write(
            lambda connection: put_rows(connection, key_options, [row], replace=["options"]), "options"
        )


def hashed(secret: str) -> str:
    """The secret has 256 random bits, so one round is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _key_of(row: Fields) -> ApiKey:
    fields = {name: value for name, value in row.items() if name != "hash"}
    return ApiKey(**{**fields, "scopes": tuple(Scope(one) for one in fields["scopes"])})
