"""The model of docs/scaling.md: what a step of fastgd.mpi.Sharded costs, by networks and ranks.

    python bench/mpi_model.py

Its constants for one machine are measured by bench/mpi.py; those of networks are assumptions, as
named.  The updates are Adam's on float32.
"""

from __future__ import annotations

from math import ceil, log2
from typing import NamedTuple

BYTES = 4  # of an element


class Network(NamedTuple):
    """A network between ranks that are one to a machine."""

    name: str
    latency: float  # seconds that a message costs its sender, however short
    rate: float  # bytes a second out of a rank, and as many into it


class Core(NamedTuple):
    """Seconds for an element, out of cache."""

    copy: float
    add: float
    update: float


NETWORKS = (Network("10 GbE", 30e-6, 1.25e9), Network("100 Gb/s", 3e-6, 12.5e9))
# About what bench/mpi.py finds on one of this project's cores when both are at work.
CORE = Core(1.1e-9, 0.45e-9, 2.7e-9)
MODELS = {"digits": 9_674, "ResNet-50": 25_600_000, "BERT large": 336_000_000,
          "GPT-2 XL": 1_560_000_000}  # fmt: skip
RANKS = (4, 64, 1000)


class Parts(NamedTuple):
    """The seconds of a step, and the bytes that a rank sends and keeps."""

    agree: float
    latency: float
    wire: float
    copies: float
    update: float
    sent: float
    kept: float

    @property
    def step(self):
        """All of it: nothing overlaps."""
        return self.agree + self.latency + self.wire + self.copies + self.update


def model(elements, ranks, network, core=CORE, bucket=2**24):
    """The parts of a step with ordered sums: an all-to-all and a ring for each bucket."""
    size = BYTES * elements
    buckets = ceil(size / bucket)
    sent = 2 * (ranks - 1) / ranks * size
    kept = 2 * size + 3 * size / ranks + 4 * min(bucket, size)
    return Parts(
        2 * log2(ranks) * network.latency,
        2 * buckets * (ranks - 1) * network.latency,
        sent / network.rate,
        (2 * core.copy + core.add) * elements,
        core.update * elements / ranks,
        sent,
        kept,
    )


def main():
    print("| | ranks | network | bucket | latency | wire | copies | update | step | sent | kept |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, elements in MODELS.items():
        for network in NETWORKS:
            for ranks in RANKS:
                for bucket in (2**24,) if ranks < 1000 else (2**24, 2**28):
                    p = model(elements, ranks, network, bucket=bucket)
                    times = (p.agree + p.latency, p.wire, p.copies, p.update, p.step)
                    row = [name, ranks, network.name, f"{bucket >> 20} MiB"]
                    row += [f"{1e3 * t:.3g} ms" for t in times]
                    row += [f"{x / 1e6:.3g} MB" for x in (p.sent, p.kept)]
                    print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
