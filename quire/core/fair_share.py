"""`FairShare`: the policy `fair`, which shares the engine between tenants, whatever the number of their requests.

Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models", OSDI). A tenant's counter grows by the
tokens that are computed for it, and the waiting requests of the tenant with the smallest counter go first. A tenant that had
nothing waiting is lifted to the smallest counter of those that had: what it did not use is not saved up. Only order is decided
here, so no seat stays empty while somebody waits for one.

Counters alone would let a tenant that came first keep every seat and every block until its requests end, and fill steps with its
prompts. So, beside them:
- the running requests of a step go in rounds, one of each tenant per round, and are preempted from the end: the tenant with the
  most of them loses first;
- a waiting request may take the place of one of a tenant that was served no less and would still hold no fewer seats. The same
  rule cannot undo the exchange, and the oldest requests of a tenant are never its victims;
- a newcomer waits for the end of a step, so where there are several tenants a step is shorter than their prompts, and computes
  those of one tenant at a time: see `_divide`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter

from quire.batch import ScheduledRequest
from quire.core.policy import Policy, RequestQueue
from quire.core.request import Request

MAX_WAIT = 0.5
"""A newcomer waits for the end of a step that has at most this part of the tokens of its own prompt, or `least_shared_step`. Its
first token also takes the time of its prompt, of the others' outputs beside it, and of the server between other work, and all
that shall be less than twice what it takes alone."""
MIN_PART = 16
"""Prompt tokens of a step, however many outputs are computed in it."""
NUM_STEPS_KEPT = 4096
"""A tenant without requests is remembered, and taken into account, for so many steps."""


class Tenant:
    """What is known of a tenant."""

    __slots__ = ("asked", "is_midway", "last_step", "num_unfinished", "running", "served", "waiting", "wants")

    def __init__(self) -> None:
        self.served = 0.0
        """The virtual counter: a token computed counts 1, a token sampled 1 more."""
        self.waiting = RequestQueue()
        self.running = RequestQueue()
        self.last_step = 0
        """The last step in which it had requests."""
        self.num_unfinished = 0
        """Prompt tokens of its running requests that the last step left over."""
        self.is_midway = False
        """Whether it was left over some."""
        self.wants = 0
        """Prompt tokens that it would have computed in this step, at most a whole step's."""
        self.asked = 0
        """What it wanted when it last came with prompts after a time without, or the longest prompt since."""

    @property
    def rank(self) -> tuple[float, int]:
        """Less served first, then fewer running."""
        return self.served, len(self.running)

    def look(self, num_tokens: int) -> None:
        """See what it wants of a step of `num_tokens`."""
        wanted, wants = self.wants, self.num_unfinished
        for request in self.waiting:
            if wants >= num_tokens:
                break
            wants += request.num_tokens
        self.wants = min(wants, num_tokens)
        if not wanted:
            self.asked = self.wants or self.asked
        self.is_midway, self.num_unfinished = self.num_unfinished > 0, 0


class FairShare(Policy):
    """See above. Cost of a step: O(running requests + tenants)."""

    running: RunningQueue

    def __init__(self, least_shared_step: int) -> None:
        super().__init__("fair")
        self._least_step = least_shared_step
        self.tenants: dict[str, Tenant] = {}
        self.waiting, self.running = WaitingQueue(self), RunningQueue(self)
        self._floor = 0.0
        """The counter that a tenant starts with when nobody waits: that of the last one who did."""
        self._step = 0
        self._slack = 0
        """Counters that differ by less count as equal."""
        self._leader: Tenant | None = None
        """Whose prompts go first in this step."""
        self._leader_part = 0
        """Prompt tokens that the leader may still have in this step, and ..."""
        self._rest = 0
        """... all others together."""

    def tenant_of(self, request: Request) -> Tenant:
        """The tenant of a live request."""
        return self.tenants[request.tenant]

    # -- see Policy ------------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        """See `Policy.arrive`. A tenant that had nothing waiting is lifted to those that had."""
        super().arrive(request)
        tenant = self.tenants.setdefault(request.tenant, Tenant())
        tenant.last_step = self._step
        if tenant.wants:
            tenant.asked = max(tenant.asked, request.num_tokens)
        if not tenant.waiting:
            tenant.served = max(tenant.served, self._least_served(tenant) - 1)  # less: it goes before those it joins

    def begin_step(self, num_tokens: int, *, has_seats: bool) -> None:
        """See `Policy.begin_step`."""
        self._step += 1
        self._slack = num_tokens
        self._forget_gone()
        self.running.arrange()
        self._divide(num_tokens, has_seats)

    def limit(self, request: Request, num_tokens: int) -> int:
        """See `Policy.limit`."""
        if request.num_tokens - request.num_computed_tokens <= 1:
            return num_tokens
        is_first = self.tenant_of(request) is self._leader
        return max(1, min(num_tokens, self._leader_part if is_first else self._rest))

    def use(self, request: Request, entry: ScheduledRequest, sign: int = 1) -> None:
        """See `Policy.use`."""
        num_left = request.num_tokens - entry.num_computed_tokens - entry.num_tokens
        if num_left < 0 or (num_left == 0 and entry.num_tokens == 1):
            return  # past its prompt
        tenant = self.tenant_of(request)
        tenant.num_unfinished += sign * num_left
        if tenant is self._leader:
            self._leader_part -= sign * entry.num_tokens
        else:
            self._rest -= sign * entry.num_tokens

    def charge(self, requests: Sequence[Request], entries: Sequence[ScheduledRequest], sign: int = 1) -> None:
        """See `Policy.charge`."""
        tenants = self.tenants
        for request, entry in zip(requests, entries):
            tenants[request.tenant].served += sign * (entry.num_tokens + entry.samples)

    def next_waiting(self) -> Request | None:
        """See `Policy.next_waiting`."""
        leader = self._leader
        if leader is not None and leader.waiting and self._leader_part > 0:
            return leader.waiting.first
        if self._rest <= 0:
            return None
        ready = [tenant for tenant in self.tenants.values() if tenant.waiting and tenant is not leader]
        return self._first(ready).waiting.first if ready else None

    def find_victim(self, request: Request) -> Request | None:
        """See `Policy.find_victim`."""
        most = self._most_running()
        return most.running.last if self._may_displace(self.tenant_of(request), most) else None

    # -- inside ----------------------------------------------------------------------------------------------

    def leave_queue(self, tenant: Tenant) -> None:
        """A tenant's last waiting request was admitted, or has ended."""
        self._floor = tenant.served

    def _least_served(self, newcomer: Tenant) -> float:
        """The counter to start with beside those who wait; where nobody does, beside those who run."""
        others = [tenant for tenant in self.tenants.values() if tenant is not newcomer]
        waiting = [tenant.served for tenant in others if tenant.waiting]
        running = [tenant.served for tenant in others if tenant.running]
        return min(waiting) if waiting else max(self._floor, min(running, default=0.0))

    def _most_running(self) -> Tenant:
        return max(self.tenants.values(), key=lambda tenant: (len(tenant.running), tenant.served))

    def _first(self, tenants: Sequence[Tenant]) -> Tenant:
        """The least served; of those that are ahead of it by a step at most, the one that wants least."""
        limit = min(tenant.served for tenant in tenants) + self._slack
        return min(
            (tenant for tenant in tenants if tenant.served <= limit),
            key=lambda tenant: (tenant.wants, len(tenant.running), tenant.served),
        )

    def _may_displace(self, tenant: Tenant, other: Tenant) -> bool:
        """Whether a waiting request of `tenant` may have the place of a running one of `other`: after the exchange `other`
        still has as many, and its request does not go first.
        """
        return len(tenant.running) + 2 <= len(other.running) and tenant.served <= other.served + self._slack

    def _divide(self, num_tokens: int, has_seats: bool) -> None:
        """How many prompt tokens of a step of `num_tokens` go to whom.

        One tenant with prompts goes first. The step becomes shorter, by `MAX_WAIT`, than the prompts with which those come who
        have none now, since they may come in the midst of it. Those who have some wait for their turn, not for the step's end;
        and those whose own outputs fill such a step have no use for it. The prompts of the others fill up what the first leaves
        of the least that a step may have.
        """
        for tenant in self.tenants.values():
            tenant.look(num_tokens)
        self._leader, self._leader_part, self._rest = None, 0, num_tokens
        if len(self.tenants) < 2:
            return
        most = self._most_running()
        wanting = [
            tenant
            for tenant in self.tenants.values()
            if tenant.is_midway or (tenant.waiting and (has_seats or self._may_displace(tenant, most)))
        ]
        if not wanting:
            return
        self._leader = self._first(wanting)
        least = min(num_tokens, self._least_step)
        absent = [each for each in self.tenants.values() if not each.wants and len(each.running) < MAX_WAIT * each.asked]
        asked = min((tenant.asked for tenant in absent), default=num_tokens)
        self._leader_part = max(MIN_PART, min(num_tokens, max(least, int(MAX_WAIT * asked))) - len(self.running))
        self._rest = max(0, least - min(self._leader_part, self._leader.wants))

    def _forget_gone(self) -> None:
        """Keep no tenant that had no requests for long."""
        last = self._step - NUM_STEPS_KEPT
        gone = []
        for name, tenant in self.tenants.items():
            if tenant.waiting or tenant.running:
                tenant.last_step = self._step
            elif tenant.last_step < last:
                gone.append(name)
        for name in gone:
            del self.tenants[name]


class WaitingQueue:
    """The waiting requests of all tenants, each in its tenant's own queue."""

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._num_requests = 0

    def __len__(self) -> int:
        return self._num_requests

    def __iter__(self) -> Iterator[Request]:
        """By tenant, those that go first first."""
        tenants = sorted(self._share.tenants.values(), key=_rank_of)
        return chain.from_iterable(tenant.waiting for tenant in tenants)

    def push(self, request: Request) -> None:
        """See `RequestQueue.push`."""
        self._share.tenant_of(request).waiting.push(request)
        self._num_requests += 1

    def remove(self, request: Request) -> None:
        """See `RequestQueue.remove`."""
        tenant = self._share.tenant_of(request)
        tenant.waiting.remove(request)
        self._num_requests -= 1
        if not tenant.waiting:
            self._share.leave_queue(tenant)


class RunningQueue(RequestQueue):
    """The running requests of all tenants. `requests` is in rounds from `arrange` on; what is pushed later comes last."""

    __slots__ = ("_share",)

    def __init__(self, share: FairShare) -> None:
        super().__init__()
        self._share = share

    def push(self, request: Request) -> None:
        """See `RequestQueue.push`."""
        self._share.tenant_of(request).running.push(request)
        self.requests.append(request)

    def pop_last(self) -> Request:
        """See `RequestQueue.pop_last`."""
        request = self.requests.pop()
        self._share.tenant_of(request).running.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """See `RequestQueue.remove`."""
        self._share.tenant_of(request).running.remove(request)
        self.requests.remove(request)

    def arrange(self) -> None:
        """Round i has the i-th request of each tenant that has so many; the least served first."""
        tenants = sorted(self._share.tenants.values(), key=_rank_of)
        lists = [tenant.running.requests for tenant in tenants if tenant.running]
        arranged: list[Request] = []
        index = 0
        while len(lists) > 1:
            arranged += [requests[index] for requests in lists]
            index += 1
            lists = [requests for requests in lists if len(requests) > index]
        for requests in lists:
            arranged += requests[index:]
        self.requests = arranged


_rank_of: Callable[[Tenant], tuple[float, int]] = attrgetter("rank")
