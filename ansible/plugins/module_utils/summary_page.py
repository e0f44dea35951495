# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""The totals of a run over a fleet as one HTML page that loads nothing and lets nothing but its own script run."""

from __future__ import annotations

import base64
import hashlib
import traceback
from typing import Any

from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils import summary_text as words
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.summary import (
    DONE,
    PROBLEMS,
    STATES,
    Host,
    Totals,
    Wave,
)
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.summary_style import STYLE

try:
    import jinja2
    import markupsafe

    HAS_JINJA2, JINJA2_ERROR = True, None
except ImportError:  # ansible-core brings it; a host on which a module runs may lack it
    HAS_JINJA2, JINJA2_ERROR = False, traceback.format_exc()

CHIPS = 60  # up to so many hosts are shown by name, more as cells
LANES = 40  # up to so many waves have a row of their own in the map
_ROW = 50  # the least hosts of a row that is made of many waves
_OPEN = 30  # a list of up to so many hosts is open from the start

_PROGRESS = ("upgraded", "unchanged", "skipped", *PROBLEMS, "running", "waiting")  # from what is done to what is left

# Its sign, its word and the shape of its cell tell a state; the colour comes on top.
SIGNS = {
    "failed": "✕", "rolled_back": "↩", "unreachable": "?", "unknown": "!", "running": "▸", "waiting": "·",
    "skipped": "–", "unchanged": "=", "upgraded": "✓",
}  # fmt: skip
VERDICT_SIGNS = {"stopped": "■", "incomplete": "✕", "running": "▸", "attention": "!", "complete": "✓"}

SCRIPT = """
document.documentElement.classList.add('js');
const rows = [...document.querySelectorAll('tbody tr')];
const text = document.getElementById('filter'), state = document.getElementById('state');
function filter() {
  const wanted = text.value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const right = !state.value || row.dataset.state === state.value;
    row.hidden = !right || !row.textContent.toLowerCase().includes(wanted);
    shown += !row.hidden;
  }
  document.getElementById('shown').textContent = shown + ' of ' + rows.length;
  if (wanted || state.value) document.querySelectorAll('details.hosts').forEach(each => each.open = true);
}
if (text) {
  text.addEventListener('input', filter);
  state.addEventListener('change', filter);
  document.getElementById('clear').addEventListener('click', () => { text.value = state.value = ''; filter(); });
  filter();
}
for (const head of document.querySelectorAll('th button')) head.addEventListener('click', () => {
  const cell = head.parentElement, body = cell.closest('table').tBodies[0];
  const up = cell.getAttribute('aria-sort') !== 'ascending', place = cell.cellIndex;
  const key = row => row.cells[place].dataset.key;
  for (const other of cell.parentElement.cells) other.removeAttribute('aria-sort');
  cell.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const order = (a, b) => key(a).localeCompare(key(b), 'en', {numeric: true});
  [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)).forEach(row => body.append(row));
});
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ verdict }}: {{ about }} - {{ totals.run }}</title>
<style>{{ style }}</style>
</head>
<body>
{% macro mark(it) %}<span class="mark {{ it.state }}{{ it.ill }}" aria-hidden="true">{{ it.sign }}</span>{% endmacro %}
{% macro table(hosts) %}
<div class="scroll"><table>
<thead><tr>
{% for name in columns %}
<th scope="col"><button type="button">{{ name }}</button></th>
{% endfor %}
</tr></thead>
<tbody>
{% for host in hosts %}
<tr id="h{{ host.number }}" data-state="{{ host.state }}">
<th scope="row" data-key="{{ host.name }}">{{ host.name }}</th>
<td data-key="{{ host.wave }}">{{ host.wave }}</td>
<td class="state" data-key="{{ host.rank }}">{{ mark(host) }} {{ host.word }}</td>
<td class="why" data-key="{{ host.reason }}">{{ host.reason }}
{% if host.hint %}<div class="quiet">hint: {{ host.hint }}</div>{% endif %}
{% for warning in host.warnings %}<div class="quiet">warning: {{ warning }}</div>{% endfor %}
{% if host.look %}<div><code>{{ host.look }}</code></div>{% endif %}</td>
<td class="figure" data-key="{{ host.vms }}">{{ host.vms or '' }}</td>
<td class="figure" data-key="{{ host.worst_us }}">{{ host.worst }}</td>
<td data-key="{{ host.standby }}">{{ host.standby }}
{%- if host.standby_reason %}<br><span class="quiet">{{ host.standby_reason }}</span>{% endif %}</td>
<td class="figure" data-key="{{ host.seconds }}">{{ host.took }}</td>
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<header class="{{ totals.verdict }}">
<div class="sign" aria-hidden="true">{{ verdict_sign }}</div>
<div>
<h1>{{ verdict }}</h1>
<p class="about">{{ about }}</p>
{% if stop %}<p class="stop"><strong>What stopped the run:</strong> {{ stop }}</p>{% endif %}
<p class="quiet">Run {{ totals.run }}. Times are UTC.</p>
</div>
</header>
<main>
<section aria-label="Hosts by state">
<div class="bar" aria-hidden="true">
{% for each in states %}
<span class="{{ each.state }}" style="flex-grow:{{ each.count }}"></span>
{% endfor %}
</div>
<ul class="legend">
{% for each in states %}
<li>{{ mark(each) }} <strong>{{ each.number }}</strong> {{ each.word }}</li>
{% endfor %}
</ul>
</section>
<dl class="facts">
{% for label, value, note, severity in cards %}
<div class="{{ severity }}"><dt>{{ label }}</dt><dd><strong>{{ value }}</strong><span>{{ note }}</span></dd></div>
{% endfor %}
</dl>
{% if problems or others %}
<p class="tools">
<label>Filter <input id="filter" type="search" placeholder="host, reason, ..."></label>
<label>State <select id="state"><option value="">all</option>
{% for each in states %}
<option value="{{ each.state }}">{{ each.word }}</option>
{% endfor %}
</select></label>
<button type="button" id="clear">Clear</button> <output id="shown"></output> hosts shown</p>
{% endif %}
{% if problems %}
<section id="problems"><h2>Hosts to look at <small>{{ problems | length }}</small></h2>
{{ table(problems) }}
</section>
{% endif %}
<section id="map"><h2>Map of hosts</h2>
<div class="map {{ 'chips' if chips else 'cells' }}">
{% for wave in map %}
<div class="wave"><h3>{{ wave.title }}</h3><div class="hosts">
{% for host in wave.members %}
<a href="#h{{ host.number }}" class="{{ host.state }}{{ host.ill }}"
 title="{{ host.title }}" aria-label="{{ host.title }}">
{{- host.sign }}{% if chips %} <b>{{ host.name }}</b><i>{{ host.word }}</i>{% endif %}</a>
{% endfor %}
</div></div>
{% endfor %}
</div></section>
<section id="waves"><h2>Waves</h2>
<div class="timeline">
{% for wave in waves %}
<div class="lane"><h3>{{ wave.title }}</h3><div class="track">
{% if wave.bar %}
<span class="{{ wave.look }}" style="left:{{ wave.bar[0] }}%;width:{{ wave.bar[1] }}%" title="{{ wave.span }}"></span>
{% endif %}
</div><p>{{ wave.progress }} <span class="quiet">{{ wave.note }}</span></p></div>
{% endfor %}
<div class="lane"><h3></h3><p class="axis quiet"><span>{{ axis[0] }}</span><span>{{ axis[1] }}</span></p></div>
</div>
</section>
{% if others %}
<section id="hosts"><h2>{{ 'Other hosts' if problems else 'Hosts' }} <small>{{ others_count }}</small></h2>
<details class="hosts"{% if open %} open{% endif %}><summary>{{ others_summary }}</summary>
{{ table(others) }}
</details></section>
{% endif %}
{% if settings %}
<section><h2>Policy of the run</h2><dl class="policy">
{% for key, value in settings %}
<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl></section>
{% endif %}
</main>
<footer class="quiet">The gap of a VM is the time of its handover, from one switch to the other. Lost frames are those
that the hosts' own reports name. A host that was rolled back reports no moves.</footer>
<script>{{ script }}</script>
</body>
</html>
"""

COLUMNS = ("Host", "Wave", "State", "Why, and where to look", "VMs", "Worst gap", "Standby", "Took")


def _row(number: int, host: Host) -> dict[str, Any]:
    worst = host.worst
    ill = host.needs_a_person and host.state not in PROBLEMS
    state = words.word(host.state) + (", to look at" if ill else "")
    why = words.why(host)
    parts = [host.name, words.wave_title(host.wave), state, why]
    return {
        "number": number, "name": host.name, "wave": host.wave, "state": host.state, "word": state,
        "rank": STATES.index(host.state), "ill": " ill" if ill else "",
        "sign": "!" if ill else SIGNS[host.state], "reason": why, "hint": host.hint, "look": host.look,
        "warnings": host.warnings, "vms": len(host.moves), "worst_us": worst[1] if worst else 0,
        "worst": words.milliseconds(worst[1]) if worst else "", "standby": host.standby or "",
        "standby_reason": host.standby_reason, "seconds": host.seconds or 0,
        "took": "" if host.seconds is None else words.duration(host.seconds),
        "title": ", ".join(part for part in parts if part),
    }  # fmt: skip


def _bar(wave: Wave, begin: float, end: float) -> tuple[float, float] | None:
    """Left edge and width in percent of the time of the run; a wave that is not at its end reaches to the right."""
    if wave.started is None or end <= begin:
        return None
    until = end if wave.ended is None else wave.ended
    left = 100 * (wave.started - begin) / (end - begin)
    return round(left, 2), round(max(0.4, 100 * (until - wave.started) / (end - begin)), 2)


def _lane(wave: Wave, members: list[dict[str, Any]], totals: Totals, begin: float, end: float) -> dict[str, Any]:
    bad = any(row["look"] for row in members)
    over = wave.finished == wave.hosts
    left = "not begun" if wave.started is None else "under way" if totals.verdict == "running" else "not finished"
    took = words.duration(wave.seconds) if over else left
    rest = words.counted({state: count for state, count in wave.states.items() if state not in DONE})
    gap = "" if wave.worst_us is None else f", worst gap {words.milliseconds(wave.worst_us)}"
    return {
        "name": wave.name, "title": words.wave_title(wave.name), "members": members, "bar": _bar(wave, begin, end),
        "look": "bad" if bad else "good" if over else "open",
        "span": f"{words.clock(wave.started)} to {words.clock(wave.ended)}",
        "progress": f"{words.number(wave.finished)} of {words.number(wave.hosts)}",
        "note": f"{took}{gap}{'; ' if rest else ''}{rest}",
    }  # fmt: skip


def _map(lanes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the map: waves, or many small ones together if there are many."""
    if len(lanes) <= LANES:
        return lanes
    rows: list[dict[str, Any]] = []
    for lane in lanes:
        if rows and len(rows[-1]["members"]) < _ROW:
            first = rows[-1]["first"]
            rows[-1] = {"first": first, "title": f"{first} to {lane['name']}",
                        "members": rows[-1]["members"] + lane["members"]}  # fmt: skip
        else:
            rows.append({"first": lane["name"], "title": lane["title"], "members": lane["members"]})
    return rows


def _cards(totals: Totals) -> list[tuple[str, str, str, str]]:
    """Label, value, note and severity."""
    losses, missing = totals.lost or totals.lost_unknown, totals.without_standby
    reporting = sum(bool(host.lost or host.lost_unknown) for host in totals.hosts)
    unknown = f", and not known of {words.several(totals.lost_unknown, 'VM')}" if totals.lost_unknown else ""
    where_lost = f"on {words.several(reporting, 'host')}{unknown}" if losses else words.losses(totals)
    where = f"VM {totals.worst_vm} on {totals.worst_host}; " if totals.worst_vm is not None else ""
    spread = f"p50 {words.milliseconds(totals.p50_us)}, p99 {words.milliseconds(totals.p99_us)}"
    kept = words.number(totals.standby.get("restored", 0))
    return [
        ("Are back" if totals.undo else "Run the release",
         words.number(totals.done),
         f"of {words.several(len(totals.hosts), 'host')}; {'from ' if totals.undo else ''}{totals.release}", ""),
        ("VMs moved", words.number(totals.moves), "without a restart", ""),
        ("Worst gap of a VM", words.milliseconds(totals.worst_us), where + spread if totals.moves else "", ""),
        ("Frames reported lost", words.number(totals.lost), where_lost, "look" if losses else ""),
        ("Standby restored", kept, words.standby_line(totals),
         "look" if missing else ""),
        ("Time", words.duration(words.elapsed(totals)),
         f"{words.clock(totals.started)} to {words.clock(totals.ended)}", ""),
    ]  # fmt: skip


def _legend(totals: Totals) -> list[dict[str, Any]]:
    found = [(state, totals.states[state]) for state in _PROGRESS if totals.states.get(state)]
    return [
        {"state": state, "ill": "", "sign": SIGNS[state], "word": words.word(state), "count": count,
         "number": words.number(count)}
        for state, count in found
    ]  # fmt: skip


def page(totals: Totals) -> str:
    """The page; everything that came from a document is escaped."""
    rows = [_row(number, host) for number, host in enumerate(totals.hosts)]
    verdict, about = words.headline(totals)
    begin = totals.started if totals.started is not None else min((w.started or 0 for w in totals.waves), default=0)
    end = totals.ended if totals.ended is not None else begin
    ill = {host.name for host in totals.problems}
    problems = sorted((row for row in rows if row["name"] in ill), key=lambda row: int(row["rank"]))
    others = [row for row in rows if row["name"] not in ill]
    members: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        members.setdefault(row["wave"], []).append(row)
    lanes = [_lane(wave, members[wave.name], totals, begin, end) for wave in totals.waves]
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE).render(
        totals=totals, verdict=verdict, about=about, verdict_sign=VERDICT_SIGNS[totals.verdict],
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'",
        style=markupsafe.Markup(STYLE), script=markupsafe.Markup(SCRIPT),
        stop=None if totals.stop is None else words.stop_line(totals.stop),
        states=_legend(totals),
        cards=_cards(totals), columns=COLUMNS, problems=problems, others=others,
        others_count=words.number(len(others)), chips=len(rows) <= CHIPS, open=len(others) <= _OPEN,
        others_summary=words.counted({state: sum(row["state"] == state for row in others) for state in STATES}),
        waves=lanes, map=_map(lanes),
        axis=(words.clock(totals.started), words.clock(totals.ended)),
        settings=[(str(key), str(value)) for key, value in totals.policy.items()],
    )  # fmt: skip
