"""After a soak: every commit replayed in the catalog's order, snapshots compared, acknowledgements found, and no file left that nothing needs."""

from __future__ import annotations

import datetime
import random
from collections import Counter
from pathlib import Path
from typing import Any

import loader
from loader.catalog.commit import TABLES_WITH_PATHS, now_micros
from loader.catalog.erasure import family_of
from loader.catalog.garbage import collect
from loader.lake import Lake
from scripts.soak_table_model import Model, Row, erased_keys, operation
from scripts.soak_table_workers import TABLE, Log, lasting

MAX_COMPARED = 15  # snapshots read at the end; readers compared others while it ran
MAX_PROBLEMS = 50
MAX_PROVEN = 4  # erasures whose proof is checked again


def verify(location: str, catalog: str | None, folder: Path, seed: int, lease_seconds: float) -> dict[str, Any]:
    """Everything that must hold after a soak.

    Returns:
        Figures, and `problems`.
    """
    lake = loader.connect(location, catalog=catalog, create=False)
    table = lake.table(TABLE)
    erasures, problems = finish_erasures(table, folder, seed)
    with lake.database.read() as connection:
        rows = connection.execute("select id, commit_id, kind, num_rows, expired_at from snapshots where table_id = ? order by id", (table.spec.id,)).fetchall()
    head = rows[-1][0] if rows else 0
    if [row[0] for row in rows] != list(range(1, len(rows) + 1)):
        problems.append("snapshots are not numbered from 1 without a gap")
    names = {commit_id: number for number, commit_id, *_ in rows}
    acknowledged = check_answers(folder, seed, names, problems)
    seen = contents_seen(folder, problems)
    kept = [number for number, _, _, _, expired in rows if expired is None]
    chosen = {head, *random.Random(seed).sample(kept, min(MAX_COMPARED, len(kept)))}
    gone = {
        number: erasures[family_of(commit_id)]
        for number, commit_id, kind, _, _ in rows
        if kind == "delete" and commit_id.startswith("erase-") and family_of(commit_id) in erasures
    }
    model, compared = Model(), 0
    for number, commit_id, kind, num_rows, _ in rows:
        if commit_id.startswith(f"{seed}-w"):
            wrong = model.apply(operation(commit_id))
            problems += [f"snapshot {number}: {wrong}"] if wrong else []
        elif number in gone:
            model.erase(gone[number])
        elif kind == "ttl":
            model.drop_old()
        if num_rows != len(model.rows):
            problems.append(f"snapshot {number} ({kind}): the catalog counts {num_rows} rows, the model {len(model.rows)}")
        if number in seen or number in chosen:
            compared += 1
            wanted = lasting(model.rows.values())
            if seen.get(number, wanted) != wanted:
                problems.append(f"snapshot {number}: a reader saw other rows than the commits before it make")
            if number in chosen:
                later = {key for erased_in, keys in gone.items() if erased_in > number for key in keys}
                problems += differences(table, number, {key: row for key, row in model.rows.items() if key not in later})
        if len(problems) > MAX_PROBLEMS:
            break
    held = table.describe()["num_pending"]
    if held != model.num_held and len(problems) <= MAX_PROBLEMS:
        problems.append(f"{held} labels wait in the table, {model.num_held} in the model")
    left = check_files(lake, lease_seconds, problems)
    problems += [f"doctor: {finding}" for finding in lake.doctor(deep=True).findings]
    kinds = Counter(kind for _, _, kind, _, _ in rows)
    lake.close()
    return {
        "snapshots": len(rows),
        "snapshots_compared": compared,
        "acknowledged": acknowledged,
        "rows_at_the_end": len(model.rows),
        "labels_held": held,
        "erasures": len(gone),
        "files_at_the_end": left,
        "commits_by_kind": ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items())),
        "problems": problems,
    }


def finish_erasures(table: Any, folder: Path, seed: int) -> tuple[dict[str, list[int]], list[str]]:
    """Erased keys by what the names of their erasures begin with, the last one brought to its end; and what is wrong with the proofs of the last few."""
    erasures: dict[str, list[int]] = {}
    problems = []
    for path in sorted(folder.glob("x*[0-9]")):
        turns = [words for words in Log.read(path) if words[0] in "ix"]
        for words in turns:
            if words[0] == "x":
                erasures[family_of(words[2])] = erased_keys(seed, path.name, int(words[1]))
        for number in sorted({int(words[1]) for words in turns})[-MAX_PROVEN:]:
            keys = erased_keys(seed, path.name, number)
            proof = table.erase(keys, due=datetime.timedelta(0))
            erasures[family_of(proof.erasure_id)] = keys
            problems += [f"erasure {proof.erasure_id}: {wrong}" for wrong in proof.verify(table.lake, keys=keys)]
    return erasures, problems


def check_answers(folder: Path, seed: int, names: dict[str, int], problems: list[str]) -> int:
    """Every acknowledgement is in the catalog under its number, and nothing that was refused is; returns how many there were."""
    count = 0
    for path in sorted(folder.glob("w*[0-9]")):
        for words in Log.read(path):
            commit_id = f"{seed}-{path.name}-{words[1]}"
            if words[0] == "a":
                count += 1
                if names.get(commit_id) != int(words[2]):
                    problems.append(f"{commit_id} was acknowledged as snapshot {words[2]}, the catalog has {names.get(commit_id)}")
            elif words[0] == "r" and commit_id in names:
                problems.append(f"{commit_id} was refused, the catalog has it as snapshot {names[commit_id]}")
    return count


def contents_seen(folder: Path, problems: list[str]) -> dict[int, str]:
    """What readers saw at each snapshot."""
    seen: dict[int, str] = {}
    for path in sorted(folder.glob("r*[0-9]")):
        for words in Log.read(path):
            if words[0] == "h" and seen.setdefault(int(words[1]), words[2]) != words[2]:
                problems.append(f"two readers saw different rows at snapshot {words[1]}")
    return seen


def differences(table: Any, number: int, rows: dict[int, Row]) -> list[str]:
    """How a snapshot differs from the model's rows, in a line."""
    read = table.to_arrow(snapshot=number).to_pylist()
    got = {row["key"]: row for row in read}
    if len(got) != len(read):
        return [f"snapshot {number}: {len(read) - len(got)} keys stand twice"]
    missing, more = sorted(rows.keys() - got.keys()), sorted(got.keys() - rows.keys())
    if missing or more:
        return [f"snapshot {number}: lacks keys {missing[:5]}, has keys {more[:5]} that must not be there"]
    for key, wanted in rows.items():
        other = {name: (got[key].get(name), value) for name, value in wanted.items() if name != "order" and got[key].get(name) != value}
        if other:
            return [f"snapshot {number}: key {key} differs, (read, replayed): {other}"]
    return []


def check_files(lake: Lake, lease_seconds: float, problems: list[str]) -> int:
    """Once all leases are over and garbage is collected, exactly the files that something refers to are there; returns how many."""
    collect(lake.database, lake.storage.files, now=now_micros() + int(lease_seconds * 1e6))
    with lake.database.read() as connection:
        known = {path for name in TABLES_WITH_PATHS for (path,) in connection.execute(f"select path from {name} where path like 'data/%'")}
        garbage = {path for (path,) in connection.execute("select path from garbage where path like 'data/%'")}
    found = set(listed(lake))
    problems += [f"files that nothing needs were left: {sorted(found - known - garbage)[:5]}"] if found - known - garbage else []
    problems += [f"files that the catalog counts on are gone: {sorted(known - found)[:5]}"] if known - found else []
    return len(found)


def listed(lake: Lake) -> list[str]:
    """The lake's data files, by listing its storage: what the table itself never does."""
    files: Any = lake.storage.files
    if hasattr(files, "folder"):
        return [str(path.relative_to(files.folder)) for path in files.folder.glob("data/**/*") if path.is_file()]
    import obstore

    return [item["path"] for part in obstore.list(files._store, "data") for item in part]
