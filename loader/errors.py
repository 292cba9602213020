"""The error tree. Owns every exception a user can meet; says what, which value, where, and what to do.

HeadraceError
├── NotFoundError                a name that does not exist
│   ├── TableNotFoundError
│   ├── SnapshotNotFoundError
│   └── ColumnNotFoundError
├── AlreadyExistsError           a table, tag or file that is already there
├── SchemaError                  data that does not fit the table's schema
├── ConfigError                  an experiment file or override that is wrong
├── FormatError                  bytes that are not a readable segment
│   ├── CorruptSegmentError      checksum, bounds or structure do not hold
│   ├── TruncatedSegmentError    the file ends too early
│   └── UnsupportedVersionError  written by a newer Headrace, or with an unknown feature
├── StorageError                 the object store or disk refused
│   ├── StorageFullError         no space left
│   └── CatalogUnavailableError  the catalog's server does not answer
├── BadRecordError               a value that means nothing, such as an image that does not decode
├── CommitError                  a commit that did not happen
│   ├── ConflictError            somebody else committed something incompatible first
│   ├── FencedError              a newer owner of this pipeline exists
│   ├── KeyExistsError           append(on_conflict="check") met a key that is there
│   ├── HorizonError             a patch of a row that is older than the table's resolve horizon
│   ├── UnknownOutcomeError      the answer was lost and could not be looked up
│   └── CatalogBusyError         another process holds the catalog's write lock
├── StateMismatchError           loader state that belongs to another plan
├── StreamTimeoutError           nothing came from Ray for longer than the time-out
├── DeviceError                  the GPU, its driver or a kernel cannot be used
│   └── DeviceMemoryError        the device has no room
├── MissingDependencyError       an optional package is not installed
└── ForkedProcessError           an object was carried over fork

A wrong argument of the caller is a plain ValueError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadraceError(Exception):
    """Base of all errors that Headrace raises on purpose."""


class NotFoundError(HeadraceError):
    """A name that does not exist."""


class TableNotFoundError(NotFoundError):
    """The lake has no table of this name."""


class SnapshotNotFoundError(NotFoundError):
    """The table has no such snapshot or tag, or it has expired."""


class ColumnNotFoundError(NotFoundError):
    """The schema has no column of this name."""


class AlreadyExistsError(HeadraceError):
    """A table, tag or file of this name is already there."""


class SchemaError(HeadraceError):
    """Data or a type that does not fit the table's schema."""


class ConfigError(HeadraceError):
    """An experiment file or an override that is wrong; names the file and the dotted path."""


class FormatError(HeadraceError):
    """Bytes that are not a readable segment."""


class CorruptSegmentError(FormatError):
    """A checksum, a bound or the structure of a segment does not hold.

    Attributes:
        column_ids: The columns whose chunks are damaged, where that is known.
    """

    column_ids: tuple[int, ...] = ()


class TruncatedSegmentError(FormatError):
    """The file ends before the segment does."""


class UnsupportedVersionError(FormatError):
    """Written by a newer Headrace, or with a feature that this one does not know."""


class StorageError(HeadraceError):
    """The object store or the disk refused."""


class StorageFullError(StorageError):
    """No space left on the device."""


class CatalogUnavailableError(StorageError):
    """The catalog's server does not answer, or the connection to it broke."""


class BadRecordError(HeadraceError):
    """A value of a row that means nothing, such as an image that does not decode; the bad-record policy says whether it stops a run."""


class CommitError(HeadraceError):
    """A commit that did not happen."""


class ConflictError(CommitError):
    """Somebody else committed something incompatible first."""


class FencedError(CommitError):
    """A newer owner of this pipeline exists; this one must stop."""


class KeyExistsError(CommitError):
    """`append(on_conflict="check")` met a key that is already in the table."""


class HorizonError(CommitError):
    """A patch of a row that is older than the table's resolve horizon allows."""


class UnknownOutcomeError(CommitError):
    """The answer to a commit was lost and could not be looked up: the same write with the same commit_id is safe to repeat."""


class CatalogBusyError(CommitError):
    """Another process holds the catalog's write lock for longer than the time-out."""


class StateMismatchError(HeadraceError):
    """Loader state that belongs to another table, snapshot, selection or order."""


class StreamTimeoutError(HeadraceError):
    """Nothing came from Ray's actors for longer than the stream's time-out; says what is waited for, and what the cluster has."""


class DeviceError(HeadraceError):
    """The GPU, its driver or a kernel cannot be used."""


class DeviceMemoryError(DeviceError):
    """The device has no room for what was asked for."""


class MissingDependencyError(HeadraceError, ImportError):
    """An optional package is not installed; names the extra that brings it."""


class ForkedProcessError(HeadraceError):
    """An object with threads or connections was used in a forked child: start workers with `spawn`."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a not-found message: the closest known names, or all of them when they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"did you mean {', '.join(close)}?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:8])
    return f"there are: {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
