"""Makes one exporter of two instances. Pure.

Each instance numbers its templates and its messages for itself, from its own start, and another release may give a
template id other fields (those of Open vSwitch 3.1 and 3.5 are the same). A collector that tells exporters by address
and observation domain, as nfcapd does, would see sequence numbers that go back and forth, and might read one instance's
records by the other's templates.

What is sent on is of one exporter (an IPFIX mediator, RFC 6183): a template id has the same fields as long as this
lives, sequence numbers have no gap for what was taken, and templates are repeated, because UDP may lose them and a
collector may be started later. Fields that count for the whole process of an instance become padding
(``ipfix.WITHOUT_MEANING``). The records themselves are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ovs_hotswap.flowlog import ipfix
from ovs_hotswap.flowlog.ipfix import Malformed, Message

_SEQUENCE_MASK = 0xFFFF_FFFF


@dataclass(slots=True)
class Counts:
    """What came from one source. ``records``: those that were sent on. ``unknown``: those whose template was not known,
    which are lost. ``malformed``: messages."""

    records: int = 0
    unknown: int = 0
    malformed: int = 0


@dataclass(slots=True)
class _Domain:
    """An observation domain as the collectors know it: its ``sequence``, and the ids of templates by their fields."""

    sequence: int = 0
    ids: dict[bytes, int] = field(default_factory=dict)


Known = Mapping[str, Mapping[int, bytes]]
"""The fields of templates by source and by the id that the source gives them."""


class Mediator:
    """``known``: what an earlier mediator knew of the sources' templates, because they do not send them for minutes."""

    def __init__(self, known: Known | None = None) -> None:
        self.templates: dict[str, dict[int, bytes]] = {
            source: dict(found) for source, found in (known or {}).items()
        }  # fmt: skip
        self.learned = False
        """Whether templates were learned since this was last set to false."""
        self.counts: dict[str, Counts] = {}
        self._domains: dict[int, _Domain] = {}

    def take(self, source: str, data: bytes) -> list[bytes]:
        """Take a message of a source, and return the messages that are to be sent on for it."""
        counts = self.counts.setdefault(source, Counts())
        try:
            message = ipfix.parse(data)
            for number, content in message.sets:
                if number == ipfix.TEMPLATES:
                    self._learn(source, content)
        except Malformed:
            counts.malformed += 1
            return []
        found: list[bytes] = []
        for number, content in message.sets:
            if number >= ipfix.FIRST_DATA:
                found += self._record(source, message, number, content, counts)
        return found

    def refresh(self, time: int) -> Iterator[bytes]:
        """Yield messages with all templates that were used. ``time``: in seconds since the epoch."""
        for domain, state in self._domains.items():
            defined = [(number, specifiers) for specifiers, number in state.ids.items()]
            yield from ipfix.template_messages(defined, time=time, sequence=state.sequence, domain=domain)

    def _learn(self, source: str, content: bytes) -> None:
        known = self.templates.setdefault(source, {})
        for number, specifiers in ipfix.templates(content):
            told = ipfix.without_totals(specifiers)
            if known.get(number) != told:
                known[number] = told
                self.learned = True

    def _record(
        self, source: str, message: Message, number: int, content: bytes, counts: Counts
    ) -> Iterator[bytes]:  # fmt: skip
        """Yield a message with a data set, and before the first of a template one that defines it. What an instance
        says of itself (options) is not sent on: there is no such instance for a collector."""
        specifiers = self.templates.get(source, {}).get(number)
        if specifiers is None:
            counts.unknown += message.domain != 0  # 0 is the domain of options (ipfix_send_exporter_data_msg)
            return
        state = self._domains.setdefault(message.domain, _Domain())
        known = state.ids.get(specifiers)
        if known is None:
            known = state.ids[specifiers] = ipfix.FIRST_DATA + len(state.ids)
            yield from ipfix.template_messages(
                [(known, specifiers)], time=message.time, sequence=state.sequence, domain=message.domain
            )
        yield ipfix.build(Message(message.time, state.sequence, message.domain, ((known, content),)))
        state.sequence = state.sequence + 1 & _SEQUENCE_MASK
        counts.records += 1
