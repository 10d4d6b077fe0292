"""Identical tasks that are held at the same time: one is run, and the others wait for its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.topics import Lane
from streams.task import Task

_URGENCY = {lane: number for number, lane in enumerate(Lane)}


def is_more_urgent(task: Task, other: Task) -> bool:
    """Whether a task is to be run before another: by its lane, then by its deadline."""
    return _urgency(task) < _urgency(other)


def _urgency(task: Task) -> tuple[int, float]:
    return _URGENCY[task.lane], task.deadline_s


@dataclass
class Coalescing:
    """Who leads, and who follows: tasks of one fingerprint are a group, of which one leads.

    Every task here leads one group or follows in one, until it leaves or its group is dissolved. The tasks are the Dispatcher's; nothing
    is decided here of when they run. All but `leave` of a leader, which looks at its followers, takes a constant time.
    """

    _leaders: dict[str, Task] = field(default_factory=dict)
    _followers: dict[Task, dict[Task, None]] = field(default_factory=dict)
    _leader_of: dict[Task, Task] = field(default_factory=dict)
    _counts: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))

    def join(self, task: Task) -> Task | None:
        """Have a task follow who leads those identical to it, and return that one; None: it is the first of them, and leads."""
        assert task.fingerprint is not None
        leader = self._leaders.setdefault(task.fingerprint, task)
        if leader is task:
            return None
        self._follow(task, leader)
        return leader

    def lead(self, task: Task) -> None:
        """Have a follower change places with its leader."""
        old = self._leader_of[task]
        self._unfollow(task)
        followers = self._followers.pop(old, {})
        self._begin(task, followers)
        self._follow(old, task)

    def leave(self, task: Task) -> Task | None:
        """Let a task go, whatever it is here. Return who leads in its place: the most urgent of its followers."""
        if task in self._leader_of:
            self._unfollow(task)
            return None
        if task.fingerprint is None or self._leaders.get(task.fingerprint) is not task:
            return None
        del self._leaders[task.fingerprint]
        heir = min(self._followers.get(task, ()), key=_urgency, default=None)
        if heir is not None:
            self._unfollow(heir)
            self._begin(heir, self._followers.pop(task, {}))
        return heir

    def dissolve(self, leader: Task) -> list[Task]:
        """Let a leader and all of its followers go; return the followers, in order of arrival. [] for one that leads nobody."""
        followers = self.followers(leader)
        for follower in followers:
            self._unfollow(follower)
        self.leave(leader)
        return followers

    def followers(self, leader: Task) -> list[Task]:
        return list(self._followers.get(leader, ()))

    def leader_of(self, task: Task) -> Task | None:
        """Return whom a task follows, None when nobody."""
        return self._leader_of.get(task)

    def following(self, lane: Lane) -> int:
        """Return how many tasks of a lane follow another."""
        return self._counts[lane]

    def __len__(self) -> int:
        return len(self._leaders) + len(self._leader_of)

    def _begin(self, leader: Task, followers: dict[Task, None]) -> None:
        assert leader.fingerprint is not None
        self._leaders[leader.fingerprint] = leader
        if followers:
            self._followers[leader] = followers
            self._leader_of.update(dict.fromkeys(followers, leader))

    def _follow(self, task: Task, leader: Task) -> None:
        self._followers.setdefault(leader, {})[task] = None
        self._leader_of[task] = leader
        self._counts[task.lane] += 1

    def _unfollow(self, task: Task) -> None:
        leader = self._leader_of.pop(task)
        followers = self._followers[leader]
        del followers[task]
        if not followers:
            del self._followers[leader]
        self._counts[task.lane] -= 1


def regroup(coalescing: Coalescing, tasks: Sequence[Task]) -> None:
    """Have identical tasks be a group again, led by the first."""
    for task in tasks:
        if task.may_coalesce:
            coalescing.join(task)
