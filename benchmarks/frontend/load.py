"""The load generator: one epoll loop over raw sockets, in a process of its own so that its own cost is known.

`python -m benchmarks.frontend.load < JOB.json` prints one line of JSON. It understands just as much HTTP as the server under test
speaks (one status line, `content-length` or chunks that end with the response), and counts events without parsing them.

Times to the first token are the server's, not this process's: they begin when a request is written to its socket, and end when
the kernel has the first token (SO_TIMESTAMPNS, which on the loopback device is when the server writes it), however busy this
process is then. The bare core that they are compared with gets the same moments.
"""

from __future__ import annotations

import json
import random
import re
import resource
import select
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

_EVENT = b"data: "
_OVERLAP = len(_EVENT) - 1
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_TAIL_BYTES = 400
"""Enough for the last event of a stream, which says how many tokens there were."""
_SO_TIMESTAMPNS = 35
"""Linux: received data comes with the time at which the kernel got it, seconds and nanoseconds since the epoch."""
_TIMESPEC = struct.Struct("@qq")


@dataclass
class Job:
    """`num_requests` requests; closed loop over `num_connections`, or open loop when `rate` is given."""

    host: str
    port: int
    path: str
    bodies: list[dict[str, Any]]
    """Request i sends body i modulo their number."""
    num_connections: int
    num_requests: int
    rate: float | None = None
    """Requests per second, exponentially spaced; a new connection for each."""
    seed: int = 0


@dataclass
class Outcome:
    """What the load generator saw. Times in seconds."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    num_requests: int = 0
    num_events: int = 0
    num_reads: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    """By the usage that the server states."""
    sent: list[float] = field(default_factory=list)
    """When each request left, from the first on."""
    ttfts: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    periods: list[float] = field(default_factory=list)
    """Times between reads of one connection, once a stream has begun: steps, where the core is slower than the front end."""


def arrivals(num_requests: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start; the same for the server and for the core that it is compared with."""
    rng, now, times = random.Random(seed), 0.0, []
    for _ in range(num_requests):
        now += rng.expovariate(rate)
        times.append(now)
    return times


class Connection:
    """One socket with at most one request under way."""

    def __init__(self, job: Job) -> None:
        self.socket = socket.create_connection((job.host, job.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.sent_at = 0.0
        self.last_at = 0.0
        """When the latest part of the body came; 0 before the head, -1 after the head alone."""
        self.tail = b""
        self.content_left: int | None = None

    def send(self, request: bytes) -> None:
        self.sent_at, self.last_at, self.tail, self.content_left = time.time(), 0.0, b"", None
        self.socket.sendall(request)

    def receive(self) -> tuple[bytes, float]:
        """What has come, and when; seconds since the epoch."""
        data, control, _, _ = self.socket.recvmsg(1 << 18, 64)
        if not data:
            raise RuntimeError("the server closed a connection")
        seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
        return data, seconds + 1e-9 * nanoseconds

    def take(self, data: bytes, now: float, outcome: Outcome) -> bool:
        """Account for received bytes; returns whether the response is complete."""
        if self.last_at == 0.0:
            if not data.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the server answered {data[:300]!r}")
            head, _, rest = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self.content_left = int(length) if length else None
            if not rest:
                self.last_at = -1.0
                return False
            data = rest
        if self.last_at <= 0.0:
            outcome.ttfts.append(now - self.sent_at)
        else:
            outcome.periods.append(now - self.last_at)
        self.last_at = now
        outcome.num_events += data.count(_EVENT) + (self.tail[-_OVERLAP:] + data[:_OVERLAP]).count(_EVENT)
        self.tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self.tail + data)[-_TAIL_BYTES:]
        if self.content_left is None:
            return data.endswith(b"0\r\n\r\n") and b"[DONE]" in self.tail
        self.content_left -= len(data)
        return self.content_left <= 0

    def num_tokens(self) -> int:
        """What the end of the response says."""
        return int(_TOKENS.findall(self.tail)[-1])


class Load:
    """Runs one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.outcome = Outcome()
        self.requests = [_render(job, body) for body in job.bodies]
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.num_sent = 0

    def run(self) -> Outcome:
        cpu, start = time.process_time(), time.perf_counter()
        times = arrivals(self.job.num_requests, self.job.rate, self.job.seed) if self.job.rate else None
        if times is None:
            idle = [self._connect() for _ in range(self.job.num_connections)]
            cpu, start = time.process_time(), time.perf_counter()
            for connection in idle:
                self._send(connection)
        while self.outcome.num_requests < self.job.num_requests:
            timeout = None
            if times is not None and self.num_sent < len(times):
                timeout = start + times[self.num_sent] - time.perf_counter()
                if timeout <= 0:
                    self._send(self._connect())
                    continue
            self._receive(timeout)
        self.outcome.wall_s = time.perf_counter() - start
        self.outcome.cpu_s = time.process_time() - cpu
        self.outcome.sent = [at - self.outcome.sent[0] for at in self.outcome.sent]
        return self.outcome

    def _connect(self) -> Connection:
        connection = Connection(self.job)
        self.connections[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def _send(self, connection: Connection) -> None:
        request = self.requests[self.num_sent % len(self.requests)]
        self.num_sent += 1
        connection.send(request)
        self.outcome.sent.append(connection.sent_at)

    def _receive(self, timeout: float | None) -> None:
        for fd, _ in self.epoll.poll(timeout):
            connection = self.connections[fd]
            data, now = connection.receive()
            self.outcome.num_reads += 1
            self.outcome.num_bytes += len(data)
            if connection.take(data, now, self.outcome):
                self._finish(connection, now)

    def _finish(self, connection: Connection, now: float) -> None:
        self.outcome.num_requests += 1
        self.outcome.num_tokens += connection.num_tokens()
        self.outcome.latencies.append(now - connection.sent_at)
        if self.job.rate is None and self.num_sent < self.job.num_requests:
            self._send(connection)
        else:
            del self.connections[connection.socket.fileno()]
            connection.socket.close()


def _render(job: Job, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {job.path} HTTP/1.1",
        f"host: {job.host}",
        "content-type: application/json",
        f"content-length: {len(content)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def main() -> None:
    """Run the job on standard input."""
    job = Job(**json.load(sys.stdin))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    print(json.dumps(asdict(Load(job).run())))


if __name__ == "__main__":
    main()
