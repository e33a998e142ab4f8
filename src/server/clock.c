/*-------------------------------------------------------------------------
 * clock.c
 *		The time of a call, and the windows it falls into.
 *
 * A call reads the clock once; that one time decides its id, its windows and
 * its partition.  Hour, day and month are UTC whatever the session's TimeZone.
 * A window is [start, end).  Tests and the demo set kavach.clock, which stops
 * the clock at an instant; nothing else in kavach asks for the time.
 *
 * Reports get their bounds here, and SQL the windows that there are.  In a plan
 * whose arguments are no constants bounds are asked for with every row, so that
 * they cost next to nothing.
 *-------------------------------------------------------------------------
 */
#include "server/clock.h"

#include "access/xact.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "server/argument.h"
#include "server/compat.h"

const PeriodInfo periods[NUM_COUNTED_PERIODS] = {
	[PERIOD_HOUR] = {"hour", "this hour", USECS_PER_HOUR},
	[PERIOD_DAY] = {"day", "today", USECS_PER_DAY},
	[PERIOD_MONTH] = {"month", "this month", CALENDAR_MONTH},
	[PERIOD_TOTAL] = {"total", "in total", FOR_EVER},
	[PERIOD_RATE] = {"five_minutes", NULL, RATE_WINDOW},
};

/* The window of that name that limits may have, or NUM_PERIODS. */
static int
find_period(const char *name)
{
	int			period = 0;

	while (period < NUM_PERIODS && strcmp(name, periods[period].name) != 0)
		period++;
	return period;
}

PeriodKind
period_named(const char *name)
{
	int			period = find_period(name);

	if (period == NUM_PERIODS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized period \"%s\"", name)));
	return period;
}

static char *clock_setting = NULL;
static TimestampTz clock_stopped_at = DT_NOBEGIN;	/* DT_NOBEGIN: it runs */

ENTRY_POINT(kavach_clock_now, 0, 0);
ENTRY_POINT(kavach_range_start, 2, 0);
ENTRY_POINT(kavach_range_edge, 4, 0);
ENTRY_POINT(kavach_month_start, 2, 0);
ENTRY_POINT(kavach_month_end, 2, 0);
ENTRY_POINT(kavach_is_period, 1, 0);
ENTRY_POINT(kavach_windows, 1, 3);

/*
 * Parses without ereport, since a check hook may run where an error would
 * take the server down (as check_recovery_target_time in the server).
 */
static bool
parse_instant(const char *text, TimestampTz *result)
{
	char		workbuf[MAXDATELEN + MAXDATEFIELDS];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nf,
				dtype,
				tz;
	fsec_t		fsec;
	struct pg_tm tm;

	return ParseDateTime(text, workbuf, sizeof(workbuf), field, ftype, MAXDATEFIELDS, &nf) == 0 &&
		compat_decode_datetime(field, ftype, nf, &dtype, &tm, &fsec, &tz) == 0 &&
		dtype == DTK_DATE &&
		tm2timestamp(&tm, fsec, &tz, result) == 0;
}

/*
 * The instant in UTC, so that it reads alike everywhere: a parallel worker is
 * given kavach.clock before it has the session's TimeZone, and while it has no
 * abbreviations of time zones at all.
 */
static bool
write_instant(TimestampTz instant, char **text)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char	   *written;

	if (timestamp2tm(instant, NULL, &tm, &fsec, NULL, NULL) != 0)
		return false;
	written = compat_guc_malloc(MAXDATELEN + 1);
	if (written == NULL)
		return false;
	tm.tm_isdst = 0;			/* or no offset is written */
	EncodeDateTime(&tm, fsec, true, 0, NULL, USE_ISO_DATES, written);
	compat_guc_free(*text);
	*text = written;
	return true;
}

static bool
check_clock(char **newval, void **extra, GucSource source)
{
	TimestampTz *instant = compat_guc_malloc(sizeof(TimestampTz));

	if (instant == NULL)
		return false;
	*instant = DT_NOBEGIN;
	*extra = instant;
	if (**newval == '\0')
		return true;
	/* an id holds milliseconds since 1970, a report goes to the year 9999 */
	if (parse_instant(*newval, instant) &&
		*instant >= CLOCK_START && *instant < CLOCK_END)
		return write_instant(*instant, newval);
	GUC_check_errdetail("It must be a timestamp between 1970 and 9999, such as \"2024-01-31 23:59:59Z\", or empty.");
	return false;
}

static void
assign_clock(const char *newval, void *extra)
{
	clock_stopped_at = *(TimestampTz *) extra;
}

void
clock_define_settings(void)
{
	DefineCustomStringVariable("kavach.clock",
							   "Sets the time that kavach goes by, for tests and demonstrations.",
							   "Empty: the system's clock.",
							   &clock_setting,
							   "",
							   PGC_SUSET,
							   0,
							   check_clock, assign_clock, NULL);
}

TimestampTz
clock_now(void)
{
	return clock_stopped_at == DT_NOBEGIN ? GetCurrentTimestamp() : clock_stopped_at;
}

/*
 * For views and reports: the same throughout a statement.
 */
static Datum
kavach_clock_now_checked(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(clock_stopped_at == DT_NOBEGIN ?
						  GetCurrentStatementStartTimestamp() : clock_stopped_at);
}

/* The start of the UTC month that lies "offset" months after the one of ts. */
static TimestampTz
month_floor(TimestampTz ts, int offset)
{
	struct pg_tm tm;
	fsec_t		fsec;
	TimestampTz result;
	int			utc = 0;
	int			month;

	if (timestamp2tm(ts, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	month = tm.tm_year * MONTHS_PER_YEAR + tm.tm_mon - 1 + offset;
	tm.tm_year = month / MONTHS_PER_YEAR;
	tm.tm_mon = month % MONTHS_PER_YEAR + 1;
	tm.tm_mday = 1;
	tm.tm_hour = tm.tm_min = tm.tm_sec = 0;
	if (tm2timestamp(&tm, 0, &utc, &result) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	return result;
}

/* The last multiple of "unit" at or before ts, before 2000 as well. */
static TimestampTz
unit_floor(TimestampTz ts, int64 unit)
{
	int64		rest = ts % unit;

	return ts - (rest < 0 ? rest + unit : rest);
}

/* Works out a window. */
static TimeRange
window_around(PeriodKind period, TimestampTz ts)
{
	int64		length = periods[period].length;
	TimeRange	window = {DT_NOBEGIN, DT_NOEND};

	if (length == CALENDAR_MONTH)
	{
		window.start = month_floor(ts, 0);
		window.end = month_floor(ts, 1);
	}
	else if (length != FOR_EVER)
	{
		window.start = unit_floor(ts, length);
		window.end = window.start + length;
	}
	return window;
}

/* The window that ts falls into: the last one's, mostly, which is kept. */
TimeRange
period_window(PeriodKind period, TimestampTz ts)
{
	static TimeRange last[NUM_COUNTED_PERIODS];

	if (ts < last[period].start || ts >= last[period].end)
		last[period] = window_around(period, ts);
	return last[period];
}

TimestampTz
period_start(PeriodKind period, TimestampTz ts)
{
	return period_window(period, ts).start;
}

TimestampTz
period_end(PeriodKind period, TimestampTz ts)
{
	return period_window(period, ts).end;
}

/*
 * ISO 8601 in UTC, for texts that are kept: they must not depend on the
 * session's TimeZone and DateStyle.
 */
char *
format_utc(TimestampTz ts)
{
	struct pg_tm tm;
	fsec_t		fsec;

	if (timestamp2tm(ts, NULL, &tm, &fsec, NULL, NULL) != 0)
		return pstrdup("?");
	return psprintf("%04d-%02d-%02dT%02d:%02d:%02dZ",
					tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

/* SQL: kavach.range_start(since, until) */
static Datum
kavach_range_start_checked(PG_FUNCTION_ARGS)
{
	if (!PG_ARGISNULL(0) && !PG_ARGISNULL(1) &&
		PG_GETARG_TIMESTAMPTZ(0) > PG_GETARG_TIMESTAMPTZ(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("since must not be after until"),
				 errhint("until is exclusive: for January 2024 write '2024-01-01Z', '2024-02-01Z'.")));
	PG_RETURN_TIMESTAMPTZ(PG_ARGISNULL(0) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(0));
}

/* The first start of a window at or after ts, as far as there are windows. */
static TimestampTz
first_start(PeriodKind period, TimestampTz ts)
{
	if (ts <= CLOCK_START)
		return ts == DT_NOBEGIN ? ts : CLOCK_START;
	if (ts > CLOCK_END)
		return DT_NOEND;
	return period_start(period, ts) == ts ? ts : period_end(period, ts);
}

/* The last one at or before ts. */
static TimestampTz
last_start(PeriodKind period, TimestampTz ts)
{
	if (ts < CLOCK_START)
		return DT_NOBEGIN;
	if (ts >= CLOCK_END)
		return ts == DT_NOEND ? ts : CLOCK_END;
	return period_start(period, ts);
}

/*
 * Cuts a range into pieces that are looked up in different places.  Whole days
 * are [edges[0], edges[3]), and the whole months among them, where wanted,
 * [edges[1], edges[2]); before and after that there are pieces of days.
 */
static void
cut_range(TimestampTz since, TimestampTz until, bool days, bool months, TimestampTz edges[4])
{
	edges[0] = first_start(PERIOD_DAY, since);
	edges[1] = first_start(PERIOD_MONTH, since);
	edges[2] = last_start(PERIOD_MONTH, until);
	edges[3] = last_start(PERIOD_DAY, until);
	if (!days || edges[0] >= edges[3])
		edges[0] = edges[3] = until;
	if (!months || edges[0] >= edges[3] || edges[1] >= edges[2])
		edges[1] = edges[2] = edges[3];
}

/* SQL: kavach.range_edge(since, until, whole, edge) */
static Datum
kavach_range_edge_checked(PG_FUNCTION_ARGS)
{
	TimestampTz edges[4];
	bool		days = !PG_ARGISNULL(2);

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(3))
		PG_RETURN_NULL();
	cut_range(PG_GETARG_TIMESTAMPTZ(0), PG_GETARG_TIMESTAMPTZ(1), days,
			  days && strcmp(text_to_cstring(PG_GETARG_TEXT_PP(2)), "monthly") == 0, edges);
	PG_RETURN_TIMESTAMPTZ(edges[PG_GETARG_INT32(3) & 3]);
}

static TimestampTz
month_arg(FunctionCallInfo fcinfo)
{
	struct pg_tm tm = {0};
	TimestampTz result;
	int			utc = 0;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 PG_ARGISNULL(0) ? errmsg("year must not be NULL") : errmsg("month must not be NULL")));
	tm.tm_year = PG_GETARG_INT32(0);
	tm.tm_mon = PG_GETARG_INT32(1);
	tm.tm_mday = 1;
	/* one month's room above, so that its end is a timestamp too */
	if (tm.tm_mon < 1 || tm.tm_mon > MONTHS_PER_YEAR ||
		tm.tm_year < 1 || tm.tm_year > 9999 ||
		tm2timestamp(&tm, 0, &utc, &result) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no month %d of year %d", tm.tm_mon, tm.tm_year),
				 errhint("Months are 1 to 12, years 1 to 9999.")));
	return result;
}

/* SQL: kavach.month_start(year, month) */
static Datum
kavach_month_start_checked(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(month_arg(fcinfo));
}

/* SQL: kavach.month_end(year, month) */
static Datum
kavach_month_end_checked(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(period_end(PERIOD_MONTH, month_arg(fcinfo)));
}

/* SQL: kavach.is_period(period), which is not NULL */
static Datum
kavach_is_period_checked(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(find_period(text_to_cstring(PG_GETARG_TEXT_PP(0))) < NUM_PERIODS);
}

/* SQL: kavach.windows(ts), which is not NULL */
static Datum
kavach_windows_checked(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int period = 0; period < NUM_PERIODS; period++)
	{
		TimeRange	window = period_window(period, PG_GETARG_TIMESTAMPTZ(0));
		Datum		values[3] = {
			CStringGetTextDatum(periods[period].name),
			TimestampTzGetDatum(window.start),
			TimestampTzGetDatum(window.end),
		};
		bool		nulls[3] = {false, false, periods[period].length == FOR_EVER};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
