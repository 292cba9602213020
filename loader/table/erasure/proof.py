"""The proof of an erasure: what was looked at, what was rewritten, what still waits to be deleted; plain JSON, signed with a key if one is given.

It names no key: each stands as a keyed hash (HMAC-SHA256 of its words in the key index under the lake's id, or under the signing key). Whoever knows a key can
check that it is among them. With a lake's id alone, short keys (numbers) can be guessed by trying: use a signing key where that matters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loader.catalog import erasure as records
from loader.catalog.read import load_spec_by_id
from loader.errors import NotFoundError, StateMismatchError, TableNotFoundError
from loader.segment.key_index import Keys
from loader.table.lookup import KeyValues, key_table
from loader.table.rows import key_words

if TYPE_CHECKING:
    from loader.lake import Lake

FORMAT, VERSION = "headrace-erasure-proof", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErasureProof:
    """What an erasure did and found.

    Attributes:
        erasure_id: Of the request.
        lake_id, table, table_id: Where.
        state: "rewritten": no live or retained file holds a key, but files that wait to be deleted may, until `due_at`. "complete": those are deleted too.
        requested_at, verified_at, due_at: ISO times, UTC.
        deleted_in: The snapshot from which on the rows were gone. What came later under the same key is a new row.
        head: The snapshot that was checked last.
        key_hashes: Sorted, hexadecimal.
        checked: Counts of what was read to verify it: segments (their whole key indexes), keys in them, entries of waiting labels.
        rewritten: [from, to] of every object that was replaced.
        waiting: Objects that were not deleted yet, with the time when they may be.
        open_writers: Writers that held names for files they might not have committed; what they wrote is committed later as new rows, or collected.
        signature: {"algorithm", "value"} over all the rest.
    """

    erasure_id: str
    lake_id: str
    table: str
    table_id: int
    state: str
    requested_at: str
    verified_at: str
    due_at: str
    deleted_in: int
    head: int
    key_hashes: tuple[str, ...]
    checked: Mapping[str, int]
    rewritten: tuple[tuple[str, str], ...]
    waiting: tuple[tuple[str, str], ...]
    open_writers: int
    signature: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.state == records.COMPLETE

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Stable: the same proof is the same text."""
        return json.dumps(self.to_dict(), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ErasureProof:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is no proof, or a newer Headrace wrote it.
        """
        try:
            value = dict(json.loads(text))
            if value.pop("format") != FORMAT:
                raise ValueError("another format")
            version = value.pop("version")
            if version != VERSION:
                raise ValueError(f"version {version}, this Headrace reads {VERSION}")
            for name in ("rewritten", "waiting"):
                value[name] = tuple((one, other) for one, other in value[name])
            return cls(**value | {"key_hashes": tuple(value["key_hashes"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no proof of an erasure ({error}): give the JSON that erase wrote") from error

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ErasureProof:
        """Read a saved proof; errors as of `from_json`."""
        try:
            return cls.from_json(Path(path).read_text())
        except FileNotFoundError as error:
            raise NotFoundError(f"no proof at {path}: check the path") from error

    def signed(self, signing_key: bytes | None) -> ErasureProof:
        """With a signature: an HMAC under the key, or a plain digest without one."""
        bare = dataclasses.replace(self, signature={})
        return dataclasses.replace(bare, signature={"algorithm": "hmac-sha256" if signing_key else "sha256", "value": _sign(bare, signing_key)})

    def verify(self, lake: Lake, *, keys: KeyValues | None = None, signing_key: bytes | None = None) -> list[str]:
        """Check the proof, and the lake against it, anew: every key index of the table is read.

        Args:
            lake: Where it was made.
            keys: The erased keys, to check that the proof is about them; they also make it fast. Without, every key in the table is hashed.
            signing_key: As given to `erase`.

        Returns:
            What does not hold, line by line; empty if all does. Rows that came under an erased key after `deleted_in` are new ones and no fault.
        """
        problems = []
        algorithm = "hmac-sha256" if signing_key else "sha256"
        if self.signature.get("algorithm") != algorithm:
            problems.append(f"the proof is signed with {self.signature.get('algorithm')}: give {'no' if signing_key else 'its'} signing_key")
        elif not hmac.compare_digest(self.signature.get("value", ""), _sign(dataclasses.replace(self, signature={}), signing_key)):
            problems.append("the signature does not match: the proof was changed, or signed with another key")
        if self.lake_id != lake.database.lake_id:
            return [*problems, f"the proof is of lake {self.lake_id}, this one is {lake.database.lake_id}"]
        try:
            with lake.database.read() as connection:
                spec = load_spec_by_id(connection, self.table_id)
        except TableNotFoundError:
            return problems  # it was dropped, and with it all that it held
        given = None if keys is None else key_words(spec, key_table(spec, keys))
        if given is not None and set(key_hashes(given, self.salt(signing_key))) != set(self.key_hashes):
            return [*problems, "these are not the keys that the proof is about"]
        from loader.table.erasure.check import find_again  # it reads the table, for which it needs this module's hashes

        return problems + find_again(lake, spec, self, given, signing_key)

    def salt(self, signing_key: bytes | None) -> bytes:
        """Under which keys are hashed."""
        return signing_key or self.lake_id.encode()


def key_hashes(keys: Keys, salt: bytes) -> list[str]:
    """The hash of each key, in their order."""
    words = [keys.low.astype("<u8")] if keys.high is None else [keys.low.astype("<u8"), keys.high.astype("<u8")]
    packed = np.ascontiguousarray(np.stack(words, axis=1)).tobytes()
    size = keys.key_bytes
    return [hmac.digest(salt, packed[at : at + size], "sha256").hex() for at in range(0, len(packed), size)]


def check_signing_key(signing_key: bytes | None) -> None:
    if signing_key is not None and (not isinstance(signing_key, bytes) or len(signing_key) < 16):
        raise ValueError("signing_key must be at least 16 bytes: make one with `openssl rand 32`, and keep it where proofs are checked")


def same_keys(proof: ErasureProof, keys: Keys, signing_key: bytes | None) -> None:
    """Raise StateMismatchError where a stored proof's hashes were made under another key than the one given."""
    if sorted(key_hashes(keys, proof.salt(signing_key))) != list(proof.key_hashes):
        raise StateMismatchError(f"erasure {proof.erasure_id} was signed with another signing key: give that one")


def _sign(proof: ErasureProof, signing_key: bytes | None) -> str:
    text = json.dumps({name: value for name, value in proof.to_dict().items() if name != "signature"}, sort_keys=True).encode()
    return hmac.digest(signing_key, text, "sha256").hex() if signing_key else hashlib.sha256(text).hexdigest()
