/*-------------------------------------------------------------------------
 * peek.h
 *		How usage stands, for advice.
 *-------------------------------------------------------------------------
 */
#ifndef PEEK_H
#define PEEK_H

#include "kavach.h"

#include "memory/rate.h"

extern void peek_usage(const SubjectList *list, TimestampTz ts, const int wanted[MAX_SUBJECTS],
					   Usage usage[MAX_SUBJECTS][NUM_PERIODS]);
extern void peek_rate(const char *agent_id, int64 permission_id, TimestampTz ts, RateCalls calls);
extern Usage peek_current(const Subject *subject, PeriodKind period, TimestampTz ts, bool own);

#endif							/* PEEK_H */
