"""The policies that are compared for a large fleet, and the ones that docs/fleet.md recommends by size."""

from __future__ import annotations

from dataclasses import replace

from bench.fleet.model import Assumed, Fault, Moment, Policy

LARGE = 10_000
# All but the collection's defaults have the same limit, so that they differ in the shape of their waves alone.
COMPARED = (
    Policy("all at once", ("100%",), max_failed=50),
    Policy("tenths", ("10%",), max_failed=50),
    Policy("tenths, early", ("10%",), max_failed=50, early=True),
    Policy("default", (1, 5, "10%"), canaries=1, soak_h=1 / 6),
    Policy("ramp", (10, 50, "2%"), canaries=50, soak_h=24, max_failed=50),
    Policy("slow ramp", (10, 50, "2%"), canaries=50, soak_h=48, max_failed=50, pause_h=4),
    Policy("one by one", (1,), forks=1, max_failed=50),
)

# For fleets of up to so many hosts.
RECOMMENDED = (
    (10, Policy("up to 10", (1,), canaries=1, soak_h=24, forks=1)),
    (100, Policy("up to 100", (1, 5, "10%"), canaries=5, soak_h=24, forks=10, max_failed=1)),
    (1_000, Policy("up to 1 000", (5, 20, "5%"), canaries=20, soak_h=24, forks=25, max_failed=5, percent=2,
                   pause_h=0.5)),
    (10_000, Policy("up to 10 000", (10, 50, "1%", "2%"), canaries=50, soak_h=48, forks=50, max_failed=25, percent=1,
                    pause_h=1)),
)  # fmt: skip

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
HOURS = (0.5, 1, 2, 4, 8, 12, 24, 48, 72)
PARALLEL = ("all at once", "tenths", "default", "ramp")  # each with a shape of its own, without soaks and pauses
FORKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
RATES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)
LIMITS = (0, 5, 25, 50, 100)
CANARIES = (1, 2, 5, 10, 20, 50)

FAULTS = (
    ("refused by the precheck on 1 host in 10", Fault(Moment.PRECHECK, 0.1)),
    ("breaks the moves on 1 host in 10", Fault(Moment.MOVES, 0.1)),
    ("breaks the soak on 1 host in 10", Fault(Moment.SOAK, 0.1)),
    ("breaks the moves on 1 host in 100", Fault(Moment.MOVES, 0.01)),
    ("fails 12 hours later on 1 host in 10", Fault(Moment.LATER, 0.1, 12)),
    ("fails 12 hours later on 1 host in 100", Fault(Moment.LATER, 0.01, 12)),
)
RARE = Fault(Moment.MOVES, 0.01)

STANDARD = Assumed()
# What is assumed, and how far from it a fleet may plausibly be: in words, and as values.
RANGES = (
    ("hosts that fail with any release", "0.1 %", (
        ("0.01 %", replace(STANDARD, ordinary=0.0001)), ("1 %", replace(STANDARD, ordinary=0.01)))),
    ("what connecting, installing and reading reports add to a host", "10 to 60 s, evenly", (
        ("5 s", replace(STANDARD, overhead_s=(5.0, 5.0))), ("300 s", replace(STANDARD, overhead_s=(300.0, 300.0))))),
    ("putting a host back", "as long as what it undoes", (
        ("half as long", replace(STANDARD, undo=0.5)), ("twice as long", replace(STANDARD, undo=2.0)))),
    ("a gate between two waves", "15 s", (
        ("5 s", replace(STANDARD, gate_s=5.0)), ("60 s", replace(STANDARD, gate_s=60.0)))),
    ("VMs of a host", "20 to 60, evenly", (
        ("1", replace(STANDARD, vms=(1, 1))), ("255", replace(STANDARD, vms=(255, 255))))),
)  # fmt: skip
