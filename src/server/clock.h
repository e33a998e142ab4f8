/*-------------------------------------------------------------------------
 * clock.h
 *		The time of a call, and the windows it falls into.
 *-------------------------------------------------------------------------
 */
#ifndef CLOCK_H
#define CLOCK_H

#include "kavach.h"

/* 1970-01-01, as ids hold milliseconds since; 10000-01-01 */
#define CLOCK_START	((TimestampTz) (UNIX_EPOCH_JDATE - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY)
#define CLOCK_END	((TimestampTz) (5373485 - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY)

/* [start, end) */
typedef struct TimeRange
{
	TimestampTz start;
	TimestampTz end;
} TimeRange;

#define CALENDAR_MONTH	(-1)
#define FOR_EVER		0

typedef struct PeriodInfo
{
	const char *name;			/* in kavach.budget_limit */
	const char *phrase;			/* in a reason: "4900 used this month" */
	int64		length;			/* or CALENDAR_MONTH, or FOR_EVER */
} PeriodInfo;

extern const PeriodInfo periods[NUM_COUNTED_PERIODS];
extern PeriodKind period_named(const char *name);

extern void clock_define_settings(void);
extern TimestampTz clock_now(void);
extern TimeRange period_window(PeriodKind period, TimestampTz ts);
extern TimestampTz period_start(PeriodKind period, TimestampTz ts);
extern TimestampTz period_end(PeriodKind period, TimestampTz ts);
extern char *format_utc(TimestampTz ts);

#endif							/* CLOCK_H */
