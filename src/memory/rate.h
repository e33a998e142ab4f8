/*-------------------------------------------------------------------------
 * rate.h
 *		The rate per hour of a permission: its calls, by windows of five minutes.
 *-------------------------------------------------------------------------
 */
#ifndef RATE_H
#define RATE_H

#include "kavach.h"

#include "memory/counter.h"

typedef int64 RateCalls[RATE_WINDOWS];	/* the oldest first */

extern int64 rate_window(TimestampTz ts);
extern int	rate_slot(int64 window);
extern bool rate_has(const RateRing *ring, int64 window);
extern bool rate_is_outside(const RateRing *ring, int64 window);
extern void rate_advance(RateRing *ring, int64 window);
extern void rate_read(const RateRing *ring, int64 window, RateCalls calls);
extern void rate_add(RateRing *ring, int64 window, int32 calls);
extern void rate_settle(RateRing *ring, int64 window, int32 calls, bool commit);
extern void rate_load(CounterEntry *entry, uint32 hash, const char *agent_id, int64 permission_id, int64 window);
extern void rate_tally(const char *agent_id, int64 permission_id, int64 window, RateCalls calls);

#endif							/* RATE_H */
