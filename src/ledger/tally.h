/*-------------------------------------------------------------------------
 * tally.h
 *		Usage, summed up from the ledger.
 *-------------------------------------------------------------------------
 */
#ifndef TALLY_H
#define TALLY_H

#include "kavach.h"

/* What a subject has used in its windows; none of its rows counts in one that begins after "newest". */
typedef struct Tally
{
	Usage		usage[NUM_PERIODS];
	TimestampTz newest;
} Tally;

/* Calls in a window of five minutes, by its number since 2000-01-01. */
typedef struct RateTally
{
	int64		window;
	int64		calls;
} RateTally;

extern void tally_begin(bool own);
extern void tally_end(void);
extern void tally_subjects(const SubjectList *list, TimestampTz ts, const int longest[MAX_SUBJECTS],
						   int64 last_batch, Tally tallies[MAX_SUBJECTS]);
extern int	tally_rate(const char *agent_id, int64 permission_id, int64 first, RateTally **tallies);

#endif							/* TALLY_H */
