"""When a table's segments are packed: by the commit that crosses a mark, a little at a time, and by maintenance, all of it.

Packing is never needed for a right answer and never fails a write: what is not packed is read row by row, and the next mark comes.
"""

from __future__ import annotations

import logging

from loader.catalog import sealing
from loader.catalog.connection import Database
from loader.errors import HeadraceError

logger = logging.getLogger(__name__)
EVERY_SNAPSHOTS = 64  # each has one writer, so one of all writers looks
EVERY_SEGMENTS = 256  # of one handle's own
PACKS_A_COMMIT = 2


class Sealer:
    """Packs the segments of one table.

    Args:
        catalog: Where they are.
        table_id: The table.
    """

    def __init__(self, catalog: Database, table_id: int) -> None:
        self._catalog, self._table_id = catalog, table_id
        self._segments = 0
        self._is_due = False

    def note(self, snapshot_id: int, num_segments: int) -> None:
        """A commit of this handle was written."""
        self._segments += num_segments
        self._is_due |= snapshot_id % EVERY_SNAPSHOTS == 0 or self._segments >= EVERY_SEGMENTS

    def run_if_due(self) -> None:
        """After a commit, once no lock is held: pack a few, if a mark was crossed."""
        if not self._is_due:
            return
        self._is_due, self._segments = False, 0
        try:
            self.run(PACKS_A_COMMIT)
        except HeadraceError as error:  # the catalog is busy, full or away: the write that was acknowledged stays so
            logger.debug("the segments of table %d are packed later: %s", self._table_id, error)

    def run(self, max_packs: int | None = None) -> int:
        """Pack what there is, a transaction a pack; returns how many packs."""
        with self._catalog.read() as connection:
            packs = sealing.num_unsealed(connection, self._table_id) // sealing.PACK_SEGMENTS
        made = 0
        while made < (packs if max_packs is None else min(packs, max_packs)):
            with self._catalog.write(self._table_id) as connection:
                if not sealing.seal(connection, self._table_id):
                    break  # another process was first
            made += 1
        return made
