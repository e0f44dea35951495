# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the summary's page: light, dark and printed."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #fff; --ink: #1b1f24; --quiet: #57606a; --line: #d0d7de; --soft: #f5f7f9;
  --good: #0f6839; --good-soft: #cdebd8; --same: #2f6278; --same-soft: #d5e6ee; --bad: #b3261e; --bad-soft: #f9d9d6;
  --back: #8a4b00; --back-soft: #ffdfb0; --gone: #6e3fa3; --gone-soft: #e8dbf6; --open: #0b5cad; --open-soft: #d3e5f8; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14181d; --ink: #e6eaef; --quiet: #9aa5b1; --line: #39424d; --soft: #1c2229;
  --good: #6fd19a; --good-soft: #1d4a32; --same: #90c4db; --same-soft: #24414e; --bad: #ff9a90; --bad-soft: #601c17;
  --back: #ffc36b; --back-soft: #6b3f06; --gone: #cfaef2; --gone-soft: #4b2c70; --open: #86bdf5;
  --open-soft: #163f69; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem clamp(0.75rem, 2.5vw, 2rem) 2rem; max-width: 92rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1, h2, h3, p, dl, dd, ul { margin: 0; padding: 0; }
h2 { font-size: 1.05rem; margin: 1.75rem 0 0.6rem; } h2 small { color: var(--quiet); font-weight: 400; }
h3 { font-size: 0.85rem; font-weight: 600; color: var(--quiet); white-space: nowrap; }
.quiet, small { color: var(--quiet); }
header { display: flex; gap: 1rem; align-items: center; padding: 1rem 1.25rem; border-radius: 10px;
  border: 1px solid var(--tone); border-left-width: 10px; background: var(--tone-soft); }
header h1 { font-size: 1.9rem; line-height: 1.15; color: var(--tone); } header .about { font-size: 1.15rem; }
header .sign { font-size: 2.4rem; line-height: 1; color: var(--tone); } header .stop { margin-top: 0.25rem; }
header .quiet { color: inherit; opacity: 0.75; font-size: 0.85rem; }
.complete, .good { --tone: var(--good); --tone-soft: var(--good-soft); }
.attention { --tone: var(--back); --tone-soft: var(--back-soft); }
.stopped, .incomplete, .bad { --tone: var(--bad); --tone-soft: var(--bad-soft); }
.running, .open { --tone: var(--open); --tone-soft: var(--open-soft); }
.upgraded { --tone: var(--good); --tone-soft: var(--good-soft); }
.unchanged { --tone: var(--same); --tone-soft: var(--same-soft); }
.failed { --tone: var(--bad); --tone-soft: var(--bad-soft); }
.rolled_back { --tone: var(--back); --tone-soft: var(--back-soft); }
.unreachable, .unknown { --tone: var(--gone); --tone-soft: var(--gone-soft); }
.waiting, .skipped { --tone: var(--quiet); --tone-soft: transparent; }
.bar { display: flex; gap: 2px; height: 16px; margin: 1.1rem 0 0.5rem; border-radius: 4px; overflow: hidden; }
.bar span { min-width: 5px; background: var(--tone); } .bar .waiting, .bar .skipped { background: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.4rem; list-style: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: 0.7rem;
  margin-top: 1.1rem; }
.facts > div { padding: 0.7rem 0.9rem; border: 1px solid var(--line); border-radius: 8px; background: var(--soft); }
.facts > .look { border: 2px solid var(--back); background: var(--back-soft); }
.facts dt { color: var(--quiet); font-size: 0.85rem; } .facts strong { display: block; font-size: 1.35rem; }
.facts dd span { color: var(--quiet); font-size: 0.85rem; overflow-wrap: anywhere; }
.facts > .look dt, .facts > .look dd span { color: var(--ink); }
/* A mark and a cell: colour, sign and shape say the same. */
.mark, .cells a { display: inline-flex; align-items: center; justify-content: center; width: 17px; height: 17px;
  font: bold 11px/1 "DejaVu Sans", "Segoe UI Symbol", system-ui, sans-serif; border: 1.5px solid var(--tone);
  background: var(--tone-soft); color: var(--tone); border-radius: 4px; text-decoration: none;
  vertical-align: text-bottom; }
.mark.failed, .cells .failed { border-radius: 0; background: var(--tone); color: var(--paper); }
.mark.rolled_back, .cells .rolled_back { border-radius: 50%; background: var(--tone); color: var(--paper); }
.mark.unreachable, .cells .unreachable, .mark.unknown, .cells .unknown { border-width: 3px; border-style: double; }
.cells .unreachable, .cells .unknown { background: var(--paper); }
.mark.waiting, .cells .waiting, .mark.skipped, .cells .skipped { border-color: var(--line); border-width: 1px; }
.map { display: grid; gap: 0.5rem; } .map .wave { display: grid; grid-template-columns: 5.5rem 1fr; gap: 0.5rem; }
.map .hosts { display: flex; flex-wrap: wrap; gap: 3px; } .map a:hover, .map a:focus { outline: 2px solid var(--ink); }
.cells .upgraded, .cells .unchanged { font-size: 8px; border-color: transparent; }
.cells .failed, .cells .rolled_back, .cells .unreachable, .cells .unknown { box-shadow: 0 0 0 1.5px var(--tone); }
.mark.ill, .cells .ill { background: var(--paper); color: var(--back); border: 2px solid var(--back); font-size: 11px; }
.chips .hosts { gap: 6px; } .chips .ill { border: 3px solid var(--back); }
.chips a { display: inline-flex; gap: 0.4rem; align-items: baseline; padding: 0.25rem 0.6rem; border-radius: 6px;
  border: 1.5px solid var(--tone); background: var(--tone-soft); color: var(--ink); text-decoration: none; }
.chips a b { font-weight: 600; overflow-wrap: anywhere; } .chips a i { font-style: normal; font-size: 0.85rem; }
.chips .failed { border-width: 3px; border-radius: 0; } .chips .rolled_back { border-width: 3px; border-radius: 1rem; }
.chips .unreachable, .chips .unknown { border-width: 2px; border-style: dashed; }
.timeline { display: grid; gap: 4px; }
.lane { display: grid; grid-template-columns: 5.5rem minmax(8rem, 1fr) 27rem; gap: 0.5rem; align-items: center; }
.lane p { font-size: 0.85rem; }
.track { position: relative; height: 18px; background: var(--soft); border-radius: 3px; }
.track span { position: absolute; top: 2px; bottom: 2px; min-width: 4px; border-radius: 3px; background: var(--tone); }
.track .bad { background: repeating-linear-gradient(45deg, var(--tone) 0 6px, var(--tone-soft) 6px 9px); }
.track .open { background: var(--tone-soft); border: 2px dashed var(--tone); }
.axis { display: flex; justify-content: space-between; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--paper); white-space: nowrap; }
tbody th { font-weight: 600; max-width: 22rem; overflow-wrap: break-word; }
.figure, .state { white-space: nowrap; } .figure { text-align: right; }
.why { min-width: 16rem; overflow-wrap: anywhere; }
tr:target { background: var(--soft); outline: 2px solid var(--open); }
code { font: 0.85rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; padding: 0.05rem 0.35rem; border-radius: 4px;
  background: var(--soft); border: 1px solid var(--line); user-select: all; overflow-wrap: anywhere; }
th button { all: unset; cursor: default; } .js th button { cursor: pointer; text-decoration: underline dotted; }
th button:focus-visible { outline: 2px solid var(--open); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
.tools { display: none; }
.js .tools { display: flex; flex-wrap: wrap; gap: 0.75rem; align-items: center; margin: 1.5rem 0 -0.75rem; }
input, select, .tools button { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line);
  border-radius: 5px; padding: 0.2rem 0.5rem; }
summary { cursor: pointer; padding: 0.3rem 0; } .policy { display: flex; flex-wrap: wrap; gap: 0.4rem 1.6rem; }
.policy div { display: flex; gap: 0.4rem; } .policy dt { color: var(--quiet); }
footer { margin-top: 1.75rem; font-size: 0.85rem; } [hidden] { display: none !important; }
@media (max-width: 60rem) { .lane { grid-template-columns: 5.5rem 1fr; } .lane p { grid-column: 2; } }
@media (max-width: 45rem) { thead, td.figure { display: none; }
  tbody tr { display: block; padding: 0.4rem 0; border-bottom: 1px solid var(--line); }
  tbody th, tbody td { display: inline-block; border: 0; padding: 0 0.5rem 0 0; } tbody td.why { display: block; } }
@media print { :root { font-size: 9.5px; } body { max-width: none; padding: 0; font-size: 1rem; }
  .tools { display: none !important; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  thead { display: table-header-group; } tbody tr { display: table-row; } td.figure { display: table-cell; }
  tbody th, tbody td, tbody td.why { display: table-cell; padding: 0.35rem 0.6rem; }
  .mark, .cells a { width: 13px; height: 13px; font-size: 9px; }
  thead th { position: static; } .scroll { overflow: visible; } .why { min-width: 0; }
  section, tr, .facts > div { break-inside: avoid; } #hosts, #map { break-inside: auto; }
  .lane { grid-template-columns: 5.5rem 1fr 24rem; } .lane p { grid-column: auto; } }
"""
