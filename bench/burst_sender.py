"""Sends frames in bursts out of a network device: ``python -m bench.burst_sender NAMESPACE DEVICE SIZE``.

Each line on standard input is an order: ``FRAMES PERIOD_MS`` sends bursts of so many frames, one in each period, until
the next order, and the first one after half a period; ``0 0`` stops. The answer to each order is how many frames were
sent before it. It ends with its input.
"""

from __future__ import annotations

import select
import socket
import sys
import time

from pyroute2 import netns

_TYPE = b"\x88\xb5"  # for experiments (IEEE 802, local experimental Ethertype 1): no switch has a flow for it


def main() -> None:
    namespace, device, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    netns.setns(namespace, flags=0)
    frame = b"\x02\0\0\0\0\2" + b"\x02\0\0\0\0\1" + _TYPE + bytes(size - 14)
    frames, period, sent = 0, 0.0, 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as way:
        way.setblocking(False)
        way.bind((device, 0))
        due = time.monotonic()
        while True:
            wait = None if not frames else max(0.0, due - time.monotonic())
            if select.select([sys.stdin], [], [], wait)[0]:
                line = sys.stdin.readline()
                if not line:
                    return
                words = line.split()
                frames, period = int(words[0]), float(words[1]) / 1e3
                print(sent, flush=True)
                due = time.monotonic() + period / 2
                continue
            for _ in range(frames):
                try:
                    way.send(frame)
                    sent += 1
                except OSError:  # its queue is full, or the port is being made again
                    continue
            due += period


if __name__ == "__main__":
    main()
