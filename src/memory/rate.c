/*-------------------------------------------------------------------------
 * rate.c
 *		The rate per hour of a permission: its calls, by windows of five minutes.
 *
 * A call looks at the window that it is in, at the twelve before, and at the
 * twelve after, which hold something only when the clock has stepped back.
 * The windows of a permission are a ring in its entry of the table of counters
 * (counter.c has the locks), by number modulo its size.  The newest window in it
 * moves on with the clock, and what it leaves behind is forgotten.  A loaded ring
 * has all the calls from its oldest window to its newest; and there are none after
 * that before its limit: the load looks for rows without an end, and calls go
 * through the ring.
 *
 * It is longer than what a call looks at, so that sessions whose clocks differ by
 * up to half an hour find in it what they need.  A call that does not (the clock has
 * stepped back, or comes to where it stepped back from) counts the ledger's rows
 * and all that is pending in the ring; it holds a lock on the permission to the
 * end of its transaction, so that two of them see each other (charge.c), and has
 * the ring loaded anew as soon as nobody has it pinned.
 *-------------------------------------------------------------------------
 */
#include "memory/rate.h"

#include "ledger/tally.h"

/* The number of the window that a time falls into, since 2000-01-01. */
int64
rate_window(TimestampTz ts)
{
	return ts / RATE_WINDOW - (ts % RATE_WINDOW < 0);
}

/* Its place in a ring. */
int
rate_slot(int64 window)
{
	return (int) (window & (RATE_RING - 1));
}

/* Whether a window is in a ring. */
bool
rate_has(const RateRing *ring, int64 window)
{
	return window > ring->newest - RATE_RING && window <= ring->newest;
}

/* Whether a call in a window needs to know of windows that the ring has not got, nor can have. */
bool
rate_is_outside(const RateRing *ring, int64 window)
{
	return window - CURRENT_RATE_WINDOW <= ring->newest - RATE_RING ||
		window + CURRENT_RATE_WINDOW >= ring->limit;
}

/* Moves the ring on, so that it covers a call in a window. */
void
rate_advance(RateRing *ring, int64 window)
{
	int64		newest = window + CURRENT_RATE_WINDOW;

	for (int64 i = Max(ring->newest + 1, newest - RATE_RING + 1); i <= newest; i++)
	{
		ring->used[rate_slot(i)] = 0;
		ring->pending[rate_slot(i)] = 0;
	}
	ring->newest = Max(ring->newest, newest);
}

/* The calls around a window, pending ones too.  What is after the ring is empty. */
void
rate_read(const RateRing *ring, int64 window, RateCalls calls)
{
	for (int i = 0; i < RATE_WINDOWS; i++)
	{
		int64		at = window - CURRENT_RATE_WINDOW + i;

		calls[i] = rate_has(ring, at) ? (int64) ring->used[rate_slot(at)] + ring->pending[rate_slot(at)] : 0;
	}
}

/* Charges calls to a window.  The ring must not come to one that it has not got yet. */
void
rate_add(RateRing *ring, int64 window, int32 calls)
{
	if (rate_has(ring, window))
		ring->pending[rate_slot(window)] += calls;
	else if (window > ring->newest)
		ring->limit = Min(ring->limit, window);
}

/* Has pending calls count, or drops them. */
void
rate_settle(RateRing *ring, int64 window, int32 calls, bool commit)
{
	ring->commits += commit;
	if (!rate_has(ring, window))
		return;
	ring->pending[rate_slot(window)] -= calls;
	if (commit)
		ring->used[rate_slot(window)] += calls;
}

/* Fills the ring of an entry that is pinned and not loaded, for a call in a window. */
void
rate_load(CounterEntry *entry, uint32 hash, const char *agent_id, int64 permission_id, int64 window)
{
	RateRing	ring = {
		.loaded = true,
		.newest = window + CURRENT_RATE_WINDOW,
		.limit = PG_INT64_MAX,
	};
	RateTally  *tallies;
	int			count = tally_rate(agent_id, permission_id, ring.newest - RATE_RING + 1, &tallies);

	for (int i = count - 1; i >= 0; i--)
	{
		if (rate_has(&ring, tallies[i].window))
			ring.used[rate_slot(tallies[i].window)] = (int32) tallies[i].calls;
		else
			ring.limit = tallies[i].window;
	}
	counter_lock(PARTITION_BIT(hash), LW_EXCLUSIVE);
	if (!entry->rate.loaded)
		entry->rate = ring;
	counter_unlock(PARTITION_BIT(hash));
	counter_note_load();
}

/* The calls around a window by the ledger, the transaction's own as well. */
void
rate_tally(const char *agent_id, int64 permission_id, int64 window, RateCalls calls)
{
	int64		first = window - CURRENT_RATE_WINDOW;
	RateTally  *tallies;
	int			count = tally_rate(agent_id, permission_id, first, &tallies);

	memset(calls, 0, sizeof(RateCalls));
	for (int i = 0; i < count && tallies[i].window < first + RATE_WINDOWS; i++)
		calls[tallies[i].window - first] = tallies[i].calls;
}
