"""A token bucket: it fills up at a constant rate, and what is taken from it may leave a debt."""

# Levels are sums of many floats: so much of a unit may be missing.
_EPSILON = 1e-6


class Bucket:
    """The units that a caller may still use. Times are in seconds of one monotonic clock.

    A new bucket is full. Units that are taken before it is known how many will be used can be given
    back, and more can be taken than it has: then the caller waits until the debt is paid.

    Args:
        capacity: The most units that it holds, so that a caller may use as many at once.
        per_s: Units that it gets in a second.
        now: The time.

    Attributes:
        capacity: See above.
        per_s: See above.
    """

    __slots__ = ("_at", "_level", "capacity", "per_s")

    def __init__(self, capacity: float, per_s: float, now: float) -> None:
        self.capacity = capacity
        self.per_s = per_s
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """Return the units in it; less than 0 is a debt."""
        passed_s = now - self._at
        if passed_s > 0:
            level = self._level + passed_s * self.per_s
            self._level = min(self.capacity, level)
            self._at = now
        return self._level

    def has(self, amount: float, now: float) -> bool:
        """Return whether it has an amount; of more than it can hold, whether it is full."""
        level = self.level(now) + _EPSILON
        return level >= amount or level >= self.capacity

    def try_take(self, amount: float, now: float) -> bool:
        """Take an amount if `has` says so; more than it can hold leaves a debt."""
        if not self.has(amount, now):
            return False
        self._level -= amount
        return True

    def take(self, amount: float, now: float) -> None:
        """Take an amount that is used in any case."""
        self._level = self.level(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        """Give back an amount that was taken and not used."""
        level = self.level(now) + amount
        self._level = min(self.capacity, level)

    def wait_s(self, amount: float, now: float) -> float:
        """Return after how many seconds it has an amount, if nothing else is taken."""
        missing = min(amount, self.capacity) - self.level(now)
        return missing / self.per_s if missing > _EPSILON else 0.0

    def change(self, capacity: float, per_s: float, now: float) -> None:
        """Change the limits; what has been used stays used."""
        used = self.capacity - self.level(now)
        self.capacity, self.per_s = capacity, per_s
        self._level = capacity - used
