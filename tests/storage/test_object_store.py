"""S3 as it is on a bad day: throttling, lost answers, cut uploads and downloads; one object a name; no credentials in what anybody sees."""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import loader
from loader import object_store
from loader.errors import AlreadyExistsError, NotFoundError, StorageError
from loader.storage import Storage
from tests import postgres, seaweedfs
from tests.s3_proxy import Proxy

DATA = bytes(range(256)) * 4000
Faulty = Callable[..., tuple[Storage, Proxy]]


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    """Storage behind a proxy that gives these faults, one a request, then none."""
    proxies: list[Proxy] = []
    with pytest.MonkeyPatch.context() as patch:

        def make(*faults: str) -> tuple[Storage, Proxy]:
            left = list(faults)
            proxy = Proxy(seaweedfs.server().port, lambda method, path: left.pop(0) if left else "none")
            proxies.append(proxy)
            for name, value in seaweedfs.server().environment(proxy.port).items():
                patch.setenv(name, value)
            return Storage.open(seaweedfs.new_location()), proxy

        yield make
    for proxy in proxies:
        proxy.stop()


def test_a_store_that_throttles_is_asked_again(faulty: Faulty) -> None:
    storage, proxy = faulty("busy", "busy", "busy")
    storage.put("a/x", DATA)
    assert bytes(storage.read("a/x")) == DATA
    assert [fault for _, _, fault in proxy.seen] == ["busy"] * 3 + ["none"] * 3


@pytest.mark.parametrize("faults", [("lost",), ("truncated",), ("truncated", "lost", "busy"), ("lost", "lost")])
def test_an_upload_that_broke_is_there_once_and_whole(faulty: Faulty, faults: tuple[str, ...]) -> None:
    storage, _ = faulty(*faults)
    storage.put("x", DATA)
    assert bytes(storage.read("x")) == DATA
    with pytest.raises(AlreadyExistsError, match="written once"):
        storage.put("x", DATA)


def test_a_lost_answer_does_not_claim_somebody_elses_object(faulty: Faulty) -> None:
    storage, _ = faulty("none", "busy")
    storage.put("x", DATA)
    with pytest.raises(AlreadyExistsError):
        storage.put("x", DATA[:-1] + b"?")
    assert bytes(storage.read("x")) == DATA


def test_half_an_answer_is_asked_for_again(faulty: Faulty) -> None:
    storage, _ = faulty("none", "cut", "lost", "cut")
    storage.put("x", DATA)
    assert bytes(storage.read_ranges("x", [(5, 600_000)])[0]) == DATA[5:600_005]
    storage.delete(["x", "x"])
    with pytest.raises(NotFoundError):
        storage.size("x")


def test_patience_is_bounded_and_the_error_says_why(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 1.0)
    storage, proxy = faulty(*["busy"] * 100)
    with pytest.raises(StorageError, match=r"cannot write s3://.*/x \(1,024,000 bytes\).*503.*SlowDown, Please reduce") as caught:
        storage.put("x", DATA)
    assert 2 <= len(proxy.seen) <= 30
    assert "\n" not in str(caught.value)


def test_what_is_refused_is_not_asked_again(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    _, proxy = faulty()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        Storage.open(seaweedfs.new_location()).put("x", DATA)
    assert len(proxy.seen) == 1


def test_of_many_writers_of_one_name_one_succeeds(faulty: Faulty) -> None:
    storage, _ = faulty()
    line = threading.Barrier(8)

    def put(number: int) -> bool:
        line.wait()
        try:
            storage.put("one", bytes([number]) * 1000)
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert won.count(True) == 1
    assert bytes(storage.read("one")) == bytes([won.index(True)]) * 1000


def test_credentials_are_in_no_error_log_or_repr(faulty: Faulty, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.2)
    caplog.set_level(logging.DEBUG)
    storage, _ = faulty(*["lost"] * 5)
    said = [repr(storage), repr(pickle.dumps(storage))]
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-a-session")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    wrong = Storage.open(seaweedfs.new_location())
    for other, path in ((storage, "x"), (wrong, "y")):
        try:
            other.put(path, DATA)
        except StorageError:
            said.append(traceback.format_exc())
    for secret in ("another-secret", "a-token-of-a-session", seaweedfs.SECRET_KEY, seaweedfs.ACCESS_KEY):
        assert all(secret not in text for text in [*said, caplog.text]), secret


def test_credentials_do_not_belong_in_a_location() -> None:
    with pytest.raises(ValueError, match="environment") as caught:
        Storage.open("s3://KEY:hidden@bucket/lake")
    assert "hidden" not in str(caught.value)


def test_a_lake_on_s3_opens_where_it_was_and_shows_no_password(faulty: Faulty) -> None:
    storage, _ = faulty("none", "lost", "lost", "none", "lost")
    catalog = postgres.new_catalog()
    with loader.connect(storage.url, catalog=catalog) as lake:
        assert "password" not in repr(lake) and catalog not in repr(lake) and catalog not in repr(lake.storage)
    with loader.connect(storage.url, catalog=catalog, create=False) as again:
        assert again.tables() == []
    postgres.drop_catalog(catalog)
