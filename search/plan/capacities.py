"""Capacities of a study's offers, kept in a file beside its service curves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planning.capacity import CapacityTable, Objective, capacity_table
from planning.demand import Workload
from planning.fleet import Offer, layouts_of
from search.home import write_json
from spaces.serialization import digest

# Raised when the same inputs would give other capacities.
_STAGE = 3


class Capacities:
    """Capacity tables of offers under one workload and SLO; what was simulated before is read from a file."""

    def __init__(self, file: Path, workload: Workload, objective: Objective, seed: int) -> None:
        self._file, self._workload, self._objective, self._seed = file, workload, objective, seed
        self._known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
        arrays = b"".join(np.ascontiguousarray(part).tobytes() for part in (workload.unit_gaps, workload.rows))
        self._identity = hashlib.sha256(arrays).hexdigest()
        self._tables: dict[str, CapacityTable] = {}

    def tables(self, offers: Sequence[Offer]) -> list[CapacityTable]:
        """Return the table of each offer; offers of the same deployment and speed share what is simulated."""
        return [self._table(offer) for offer in offers]

    def of_layouts(self, offers: Sequence[Offer]) -> list[list[CapacityTable]]:
        """Return the tables of the layouts of each offer, in which the capacity of one machine is known."""
        found = [self.tables(layouts_of(offer)) for offer in offers]
        for table in (table for tables in found for table in tables):
            table.rate(machines=1)
        return found

    def keep(self) -> None:
        """Write the capacities that are known now."""
        for key, table in self._tables.items():
            self._known[key] = {str(instances): rate for instances, rate in table.known.items()}
        write_json(self._known, self._file)

    def _table(self, offer: Offer) -> CapacityTable:
        one = offer.deployment
        key = digest(_STAGE, one.placement, one.curves, offer.kind.speed, self._identity, self._objective, self._seed)[
            :16
        ]
        known = {int(instances): rate for instances, rate in self._known.get(key, {}).items()}
        shared = self._tables[key].known if key in self._tables else known
        table = capacity_table(offer, self._workload, self._objective, self._seed, shared)
        self._tables.setdefault(key, table)
        return table
