/*-------------------------------------------------------------------------
 * tally.h
 *		Usage, summed up from the ledger.
 *-------------------------------------------------------------------------
 */
#ifndef TALLY_H
#define TALLY_H

#include "kavach.h"

extern void tally_subjects(const Subject *subject, TimestampTz ts, const int longest[NUM_SCOPES],
						   bool own, Usage usage[NUM_SCOPES][NUM_PERIODS]);
extern void tally_rate(const char *agent_id, int64 permission_id, TimestampTz ts,
					   Usage usage[RATE_WINDOWS]);

#endif							/* TALLY_H */
