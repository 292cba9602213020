"""Object stores through obstore: opened by url, asked again with jitter where a failure may pass, and errors that hold no credentials.

Owns what is done over the network and what its failures mean; knows nothing of folders or lakes. A new object is put with If-None-Match, so that two writers
of one name never both succeed; where the answer to a put was lost, the object itself is asked whether it is there. obstore's own retries are off: it may not
repeat such a put, and two layers of retries multiply.
"""

from __future__ import annotations

import datetime
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from loader.errors import AlreadyExistsError, NotFoundError, StorageError, TruncatedSegmentError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")
RETRY_SECONDS = 60.0  # after this a failure is final
FIRST_PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 5.0
READ_SECONDS = 30  # of one request; at most MAX_REQUEST_BYTES come
PUT_SECONDS = 300  # of one upload, whatever its size
CONNECT_SECONDS = 5
logger = logging.getLogger(__name__)
_memory_stores: dict[str, ObjectStore] = {}
_memory_lock = threading.Lock()
_STATUS = re.compile(r"status code: (\d{3})")
_ROLE_SERVICE = "169.254.169.254"  # where a machine in the cloud is asked for its role's credentials
_NEVER_SENT = "builder error"
_REASON = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")


def open_store(url: str, request_seconds: int = READ_SECONDS) -> ObjectStore:
    """The store of a url; credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …) or the machine's role.

    Raises:
        ValueError: The url itself holds credentials.
        StorageError: No store is known for it.
    """
    from obstore.store import MemoryStore, from_url

    if url.startswith("memory:"):
        with _memory_lock:
            return _memory_stores.setdefault(url, MemoryStore())
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ValueError(f"the location {place} holds credentials or options: give them in the environment (AWS_ACCESS_KEY_ID, …), where no log shows them")
    retry: RetryConfig = {"max_retries": 0, "retry_timeout": datetime.timedelta(seconds=request_seconds)}
    client: ClientConfig = {"timeout": f"{request_seconds}s", "connect_timeout": f"{CONNECT_SECONDS}s"}
    if os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"):  # given options replace those of the environment
        client["allow_http"] = True
    try:
        return from_url(url, retry_config=retry, client_options=client)
    except Exception as error:  # obstore raises several unrelated types for a url it cannot use
        raise StorageError(f"cannot open {url!r}: {plain(error)}") from error


def put_new(store: ObjectStore, path: str, data: bytes, where: str) -> None:
    """Write an object that is not there yet, whole or not at all.

    Raises:
        AlreadyExistsError: Something else is at `path`.
        StorageError: The store refused, or did not answer for RETRY_SECONDS.
    """
    import obstore

    lost = False  # whether an earlier try may have arrived

    def put() -> None:
        nonlocal lost
        try:
            obstore.put(store, path, data, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            if lost and _holds(store, path, data, where):
                return
            raise AlreadyExistsError(f"{where} is already there: a path is written once") from None
        except obstore.exceptions.BaseError:
            lost = True
            raise

    _again(put, f"cannot write {where} ({len(data):,} bytes)")


def _holds(store: ObjectStore, path: str, data: bytes, where: str) -> bool:
    """Whether the object at `path` is these bytes: then the put whose answer was lost has succeeded."""
    if size(store, path, where) != len(data):
        return False
    return bytes(ranges(store, path, [(0, len(data))], where)[0]) == data


def size(store: ObjectStore, path: str, where: str) -> int:
    """Bytes of an object; NotFoundError if there is none."""
    import obstore

    try:
        return int(_again(lambda: obstore.head(store, path), f"cannot read {where}")["size"])
    except FileNotFoundError:
        raise NotFoundError(f"no object {where}") from None


def delete(store: ObjectStore, path: str, where: str) -> None:
    """Delete an object; one that is not there is no error."""
    import obstore

    try:
        _again(lambda: obstore.delete(store, path), f"cannot delete {where}")
    except FileNotFoundError:
        pass


def listing(store: ObjectStore, prefix: str, where: str) -> list[tuple[str, int, datetime.datetime]]:
    """(path, bytes, time it was written) of every object under a prefix."""
    import obstore

    def listed() -> list[tuple[str, int, datetime.datetime]]:
        return [(found["path"], int(found["size"]), found["last_modified"]) for part in obstore.list(store, prefix) for found in part]

    return _again(listed, f"cannot list {where}")


def ranges(store: ObjectStore, path: str, wanted: Sequence[tuple[int, int]], where: str) -> list[memoryview]:
    """The bytes of each (start, stop), each complete.

    Raises:
        NotFoundError: There is no such object.
        TruncatedSegmentError: It ends before a range does.
    """
    import obstore

    asked = [request for request in wanted if request[1] > request[0]]
    if not asked:
        return [memoryview(b"") for _ in wanted]
    starts, ends = [start for start, _ in asked], [stop for _, stop in asked]
    try:
        found = iter(_again(lambda: obstore.get_ranges(store, path, starts=starts, ends=ends, coalesce=0), f"cannot read {where}", past_end=True))
    except FileNotFoundError:
        raise NotFoundError(f"no object {where}: it was deleted, or the lake was moved without it") from None
    buffers = [memoryview(next(found)) if stop > start else memoryview(b"") for start, stop in wanted]
    for (start, stop), buffer in zip(wanted, buffers, strict=True):
        if buffer.nbytes != stop - start:
            end = start + buffer.nbytes
            raise TruncatedSegmentError(
                f"{where} ends at byte {end:,}, before byte {stop:,} that the catalog counts on: the file was cut off, restore it from a backup"
            )
    return buffers


def _again(call: Callable[[], T], refused: str, *, past_end: bool = False) -> T:
    """The answer of `call`, asked again with growing, random pauses while what fails may pass."""
    import obstore

    deadline, pause = time.monotonic() + RETRY_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except obstore.exceptions.BaseError as error:
            reason = plain(error)
            if not may_pass(error) or time.monotonic() + pause > deadline:
                kind = TruncatedSegmentError if past_end and _status(error) == 416 else StorageError
                raise kind(f"{refused}: {reason}") from None  # the original's text may quote signed headers
        logger.info("%s: %s; trying again", refused, reason)
        time.sleep(pause)
        pause = min(MAX_PAUSE_SECONDS, random.uniform(FIRST_PAUSE_SECONDS, 3 * pause))  # timing only: results do not depend on it


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the store is busy or throttles, or the connection broke. What it refuses, it refuses again."""
    import obstore

    if not isinstance(error, obstore.exceptions.GenericError) or _NEVER_SENT in str(error):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _status(error: Exception) -> int | None:
    """The HTTP status of an answer, None where there was none."""
    found = _STATUS.search(str(error))
    return None if found is None else int(found[1])


def plain(error: Exception) -> str:
    """What went wrong in one line, without what a store quotes of the request: its signature and session token are in there."""
    text = str(error)
    reason = _REASON.search(text)
    first = re.split(r"\n\nDebug source|<\?xml|<Error>|\n", text, maxsplit=1)[0].strip().rstrip(":")
    if _ROLE_SERVICE in first:
        first += "; no credentials stand in the environment (AWS_ACCESS_KEY_ID, …), and the machine's role gave none"
    if _NEVER_SENT in first:
        first += "; a store without TLS needs AWS_ALLOW_HTTP=true"
    return f"{first}: {reason[1]}, {reason[2]}" if reason else first
