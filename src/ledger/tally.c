/*-------------------------------------------------------------------------
 * tally.c
 *		Usage, summed up from the ledger.
 *
 * What a counter is loaded from, and what answers where there are no counters
 * (a standby).  Sums are over committed rows in the latest snapshot, and the
 * transaction's own, where they are asked for.
 *
 * What closed batches add up to is in kavach.usage_scope, a row for each window
 * of each subject; what is not closed is the tail (batch.c), whose rows are read
 * one by one: all in one snapshot, in which each row of the ledger is in the one
 * or in the other.  Who knows that he has all of what was written after some
 * batch says so, and only rows of the tail up to that one are read (load.c): so
 * that mostly none is.
 *
 * A row counts in the windows of kavach.charged_at, which is never later than
 * its ts: so rows are looked for from the start of the window on, with no end.
 *
 * Hours of agents are in kavach.usage_scope for two days.  Those of more than
 * a day ago are added up from the agent's rows, as long as the month is there, and
 * so are rates.  Where the tail is all of the ledger, as it is before the first
 * batch is closed, the agent's rows are found by agent, too, as there may be few.
 *-------------------------------------------------------------------------
 */
#include "ledger/tally.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/tuptable.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"

#include "ledger/batch.h"
#include "ledger/dropped.h"
#include "ledger/scan.h"
#include "server/clock.h"
#include "server/compat.h"
#include "server/lock.h"
#include "server/query.h"
#include "server/straight.h"

/* Hours of agents that began longer ago may be gone from kavach.usage_scope soon, or never have been there. */
#define AGENT_HOURS_KEPT	USECS_PER_DAY

/* What is being summed up. */
typedef struct Sums
{
	Oid			ledger;
	const SubjectList *list;
	TimestampTz starts[NUM_PERIODS];
	TimestampTz ends[NUM_PERIODS];
	int			longest[MAX_SUBJECTS];	/* -1: nothing */
	Tally	   *tallies;
} Sums;

static void
add(int64 *to, int64 amount)
{
	if (pg_add_s64_overflow(*to, amount, to))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("bigint out of range"),
				 errdetail("The rows of the ledger add up to more than can be counted.")));
}

/* ---- what closed batches add up to ---- */

enum
{
	USAGE_SCOPE,
	USAGE_SUBJECT,
	USAGE_PERIOD,
	USAGE_START,
	USAGE_TOKENS,
	USAGE_CALLS
};

static StraightTable usage_table = {
	.name = "kavach.usage_scope",
	.nkeys = 4,
	.ncolumns = 6,
	.columns = {
		[USAGE_SCOPE] = {"scope", TEXTOID},
		[USAGE_SUBJECT] = {"subject", TEXTOID},
		[USAGE_PERIOD] = {"period", TEXTOID},
		[USAGE_START] = {"start", TIMESTAMPTZOID},
		[USAGE_TOKENS] = {"tokens", NUMERICOID},
		[USAGE_CALLS] = {"calls", INT8OID},
	},
};

/* The same by statement: the latest window up to one. */
static Statement select_usage = {
	.sql = "SELECT start, tokens, calls FROM kavach.usage_scope"
	" WHERE scope = $1 AND subject = $2 AND period = $3 AND start <= $4 ORDER BY start DESC LIMIT 1",
	.nargs = 4,
	.argtypes = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID},
};

/* A window of closed batches. */
typedef struct ClosedWindow
{
	TimestampTz start;
	Datum		tokens;			/* numeric, of this moment */
	int64		calls;
} ClosedWindow;

/* How windows of closed batches are found. */
typedef struct ClosedScan
{
	IndexScanDesc scan;			/* NULL: by statement */
	TupleTableSlot *slot;
	OwnerRights owner;
} ClosedScan;

static void
open_closed(ClosedScan *closed)
{
	closed->scan = NULL;
	if (straight_open(&usage_table))
	{
		closed->slot = table_slot_create(usage_table.table, NULL);
		closed->scan = compat_index_beginscan(usage_table.table, usage_table.index, GetActiveSnapshot(), usage_table.nkeys);
	}
	else
		query_begin(&closed->owner);
}

static void
close_closed(ClosedScan *closed)
{
	if (closed->scan == NULL)
	{
		query_end(&closed->owner);
		return;
	}
	index_endscan(closed->scan);
	ExecDropSingleTupleTableSlot(closed->slot);
	straight_close(&usage_table);
}

/* The latest window of a kind, that does not begin later than "until"; false where there is none. */
static bool
latest_window(ClosedScan *closed, const Datum key[3], TimestampTz until, ClosedWindow *window)
{
	ScanKeyData scan_keys[4];
	bool		isnull;

	if (closed->scan == NULL)
	{
		Datum		values[] = {key[0], key[1], key[2], TimestampTzGetDatum(until)};

		if (query_select_in(GetActiveSnapshot(), &select_usage, values, NULL) == 0)
			return false;
		window->start = DatumGetTimestampTz(query_datum(0, 1, &isnull));
		window->tokens = query_datum(0, 2, &isnull);
		window->calls = query_int64(0, 3).value;
		return true;
	}
	for (int i = USAGE_SCOPE; i <= USAGE_PERIOD; i++)
		ScanKeyEntryInitialize(&scan_keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   usage_table.index->rd_indcollation[i], F_TEXTEQ, key[i]);
	ScanKeyInit(&scan_keys[USAGE_START], USAGE_START + 1, BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(until));
	index_rescan(closed->scan, scan_keys, 4, NULL, 0);
	if (!index_getnext_slot(closed->scan, BackwardScanDirection, closed->slot))
		return false;
	window->start = DatumGetTimestampTz(slot_getattr(closed->slot, usage_table.attnums[USAGE_START], &isnull));
	window->tokens = slot_getattr(closed->slot, usage_table.attnums[USAGE_TOKENS], &isnull);
	window->calls = DatumGetInt64(slot_getattr(closed->slot, usage_table.attnums[USAGE_CALLS], &isnull));
	return true;
}

static void
add_window(Tally *tally, PeriodKind period, const ClosedWindow *window)
{
	add(&tally->usage[period].used[MEASURE_TOKENS], DatumGetInt64(DirectFunctionCall1(numeric_int8, window->tokens)));
	add(&tally->usage[period].used[MEASURE_CALLS], window->calls);
}

/* Whether a window has no say about later ones: after an agent's old hour there may be others, which are gone. */
static bool
is_old_hour(const Subject *subject, int period, TimestampTz start)
{
	return subject->scope == SCOPE_AGENT && period == PERIOD_HOUR &&
		start < GetCurrentTimestamp() - AGENT_HOURS_KEPT;
}

/*
 * Adds a subject's windows.  The latest of all, of the shortest kind that there
 * is, bounds the time of its rows.
 */
static void
add_closed_windows(const Sums *sums, ClosedScan *closed, int i)
{
	const Subject *subject = &sums->list->subjects[i];
	Tally	   *tally = &sums->tallies[i];
	bool		bounded = false;
	Datum		key[3] = {
		CStringGetTextDatum(scopes[subject->scope].name),
		CStringGetTextDatum(subject->id ? subject->id : ""),
	};

	for (int period = 0; period <= sums->longest[i] || (!bounded && period < PERIOD_TOTAL); period++)
	{
		ClosedWindow window;
		bool		found;

		key[USAGE_PERIOD] = CStringGetTextDatum(periods[period].name);
		found = latest_window(closed, key, DT_NOEND, &window);
		if (found && !bounded && period < PERIOD_TOTAL && !is_old_hour(subject, period, window.start))
		{
			tally->newest = Max(tally->newest, period_end(period, window.start) - 1);
			bounded = true;
		}
		if (period > sums->longest[i])
			continue;
		if (found && window.start > sums->starts[period])
			found = latest_window(closed, key, sums->starts[period], &window);
		if (found && window.start == sums->starts[period])
			add_window(tally, period, &window);
	}
}

static void
add_closed(const Sums *sums)
{
	ClosedScan	closed;

	open_closed(&closed);
	for (int i = 0; i < sums->list->count; i++)
		if (sums->longest[i] >= 0)
			add_closed_windows(sums, &closed, i);
	close_closed(&closed);
}

/* ---- rows ---- */

static bool
is_theirs(const Subject *subject, const CountedRow *row)
{
	const text *id = row->ids[subject->scope];

	if (subject->scope == SCOPE_ALL)
		return true;
	return id != NULL && VARSIZE_ANY_EXHDR(id) == strlen(subject->id) &&
		memcmp(VARDATA_ANY(id), subject->id, VARSIZE_ANY_EXHDR(id)) == 0;
}

/* Adds a row to the windows of a subject that it counts in, from the shortest to "longest". */
static void
add_row(const Sums *sums, int i, int longest, const CountedRow *row)
{
	Tally	   *tally = &sums->tallies[i];

	tally->newest = Max(tally->newest, row->charged_at);
	for (int period = 0; period <= longest; period++)
	{
		if (row->charged_at < sums->starts[period] || row->charged_at >= sums->ends[period])
			continue;
		add(&tally->usage[period].used[MEASURE_TOKENS], row->tokens);
		add(&tally->usage[period].used[MEASURE_CALLS], row->is_call);
	}
}

/* ---- the tail ---- */

/* Rows of the tail, of subjects that are to be found by batch. */
typedef struct TailRows
{
	const Sums *sums;
	bool		skipped[MAX_SUBJECTS];
	int64		last_batch;
} TailRows;

static void
add_tail_row(const CountedRow *row, void *arg)
{
	const TailRows *rows = arg;
	const Sums *sums = rows->sums;

	for (int i = 0; i < sums->list->count; i++)
		if (sums->longest[i] >= 0 && !rows->skipped[i] && is_theirs(&sums->list->subjects[i], row))
			add_row(sums, i, sums->longest[i], row);
}

/* A subject whose rows are all looked at. */
typedef struct SubjectRows
{
	const Sums *sums;
	int			i;				/* of the list */
	int			longest;
	int64		last_batch;
} SubjectRows;

static void
add_subject_row(const CountedRow *row, void *arg)
{
	const SubjectRows *rows = arg;

	if (row->batch <= rows->last_batch)
		add_row(rows->sums, rows->i, rows->longest, row);
}

static void
add_agent_rows(const Sums *sums, int i, int longest, int64 last_batch)
{
	SubjectRows rows = {sums, i, longest, last_batch};
	RowSearch	search = {
		.kind = SCAN_AGENT,
		.since = sums->starts[longest],
		.agent_id = sums->list->subjects[i].id,
	};

	scan_rows(sums->ledger, &search, add_subject_row, &rows);
}

static void
add_batches(TailRows *rows, TimestampTz since, int64 first, int64 last)
{
	RowSearch	search = {
		.kind = SCAN_BATCH,
		.since = since,
		.first = first,
		.last = Min(last, rows->last_batch),
	};

	if (search.first <= search.last)
		scan_rows(rows->sums->ledger, &search, add_tail_row, rows);
}

/* Adds what batches of the tail have, up to the last one.  Numbers that follow each other are looked for at once. */
static void
add_tail_batches(TailRows *rows, const BatchTail *tail, TimestampTz since)
{
	int			i = 0;

	while (i < tail->nopen)
	{
		int			first = i;

		while (++i < tail->nopen && tail->open[i] == tail->open[i - 1] + 1)
			;
		add_batches(rows, since, tail->open[first], tail->open[i - 1]);
	}
	add_batches(rows, since, tail->high + 1, PG_INT64_MAX);
}

/* Whether nothing has been closed yet. */
static bool
is_all(const BatchTail *tail)
{
	return tail->high < 0;
}

static void
add_tail(const Sums *sums, const BatchTail *tail, int64 last_batch)
{
	TailRows	rows = {sums, {false}, last_batch};
	int			longest = -1;

	for (int i = 0; i < sums->list->count; i++)
	{
		if (sums->longest[i] < 0)
			continue;
		rows.skipped[i] = is_all(tail) && scopes[sums->list->subjects[i].scope].indexed;
		if (rows.skipped[i])
			add_agent_rows(sums, i, sums->longest[i], last_batch);
		else
			longest = Max(longest, sums->longest[i]);
	}
	if (longest >= 0)
		add_tail_batches(&rows, tail, sums->starts[longest]);
}

/* ---- hours of agents that may be gone ---- */

/* Adds the hour of agents up from their rows, where it is not in the rollup any more. */
static void
add_old_hours(const Sums *sums)
{
	if (sums->starts[PERIOD_HOUR] >= GetCurrentTimestamp() - AGENT_HOURS_KEPT)
		return;
	for (int i = 0; i < sums->list->count; i++)
	{
		if (sums->longest[i] < 0 || sums->list->subjects[i].scope != SCOPE_AGENT)
			continue;
		dropped_refuse(sums->starts[PERIOD_HOUR], "What it has used by day, by month and in total is known.");
		memset(&sums->tallies[i].usage[PERIOD_HOUR], 0, sizeof(Usage));
		add_agent_rows(sums, i, PERIOD_HOUR, PG_INT64_MAX);
	}
}

/* ---- what others call ---- */

/*
 * What is summed up from here to tally_end is of one moment: now.  own: whether
 * the transaction's own rows count.  A restore is looked for first: what it has
 * yet to bring would not be in the snapshot.
 */
void
tally_begin(bool own)
{
	Oid			ledger = ledger_oid();
	Snapshot	snapshot;

	lock_relation(ledger, AccessShareLock);
	AcceptInvalidationMessages();
	scan_refuse_during_restore(ledger);
	CommandCounterIncrement();
	snapshot = GetLatestSnapshot();
	if (!own)
		snapshot->curcid = FirstCommandId;
	PushActiveSnapshot(snapshot);
}

void
tally_end(void)
{
	PopActiveSnapshot();
}

/*
 * The usage of subjects in the windows that ts falls into.  longest: for each
 * the longest window that is wanted, or -1 for none; what is returned of
 * longer ones means nothing.  last_batch: rows that were written in later ones
 * may be left out, other than by those who put them in by hand.
 */
void
tally_subjects(const SubjectList *list, TimestampTz ts, const int longest[MAX_SUBJECTS],
			   int64 last_batch, Tally tallies[MAX_SUBJECTS])
{
	Oid			ledger = ledger_oid();
	Sums		sums;
	BatchTail	tail;

	sums.ledger = ledger;
	sums.list = list;
	sums.tallies = tallies;
	for (int period = 0; period < NUM_PERIODS; period++)
	{
		sums.starts[period] = period_start(period, ts);
		sums.ends[period] = period_end(period, ts);
	}
	for (int i = 0; i < list->count; i++)
	{
		sums.longest[i] = longest[i];
		memset(&tallies[i], 0, sizeof(Tally));
		if (longest[i] >= 0)
			tallies[i].newest = sums.starts[longest[i]] - (longest[i] == PERIOD_TOTAL ? 0 : 1);
	}
	tail = batch_tail();
	if (!is_all(&tail))
		add_closed(&sums);
	add_tail(&sums, &tail, Max(last_batch, batch_last_of_others(ledger, &tail)));
	if (!is_all(&tail))
		add_old_hours(&sums);
}

/* A rate that is being counted: its calls by window, from the first on. */
typedef struct RateRows
{
	int64		permission_id;
	RateTally  *tallies;
	int			count;
	int			room;
} RateRows;

static int
compare_windows(const void *a, const void *b)
{
	int64		left = ((const RateTally *) a)->window;
	int64		right = ((const RateTally *) b)->window;

	return left < right ? -1 : left > right;
}

/* An agent's rows come in order of their time, month by month: mostly in the window of the last one. */
static void
add_rated_row(const CountedRow *row, void *arg)
{
	RateRows   *rows = arg;
	int64		window = row->ts / RATE_WINDOW - (row->ts % RATE_WINDOW < 0);

	if (!row->is_call || row->permission_id != rows->permission_id)
		return;
	if (rows->count == 0 || rows->tallies[rows->count - 1].window != window)
	{
		if (rows->count == rows->room)
			rows->tallies = repalloc(rows->tallies, sizeof(RateTally) * (rows->room *= 2));
		rows->tallies[rows->count].window = window;
		rows->tallies[rows->count++].calls = 0;
	}
	rows->tallies[rows->count - 1].calls++;
}

/* Sorts windows, and adds up those that are there several times; returns how many there are. */
static int
merge_windows(RateTally *tallies, int count)
{
	int			merged = 0;

	qsort(tallies, count, sizeof(RateTally), compare_windows);
	for (int i = 0; i < count; i++)
	{
		if (merged > 0 && tallies[merged - 1].window == tallies[i].window)
			tallies[merged - 1].calls += tallies[i].calls;
		else
			tallies[merged++] = tallies[i];
	}
	return merged;
}

/*
 * The calls that a permission has admitted in each window of its rate per hour
 * from "first" on, the oldest first; returns how many windows have any.
 */
int
tally_rate(const char *agent_id, int64 permission_id, int64 first, RateTally **tallies)
{
	RateRows	rows = {
		.permission_id = permission_id,
		.room = RATE_WINDOWS,
	};
	RowSearch	search = {
		.kind = SCAN_AGENT,
		.since = first * RATE_WINDOW,
		.agent_id = agent_id,
	};

	rows.tallies = palloc(sizeof(RateTally) * rows.room);
	tally_begin(true);
	scan_rows(ledger_oid(), &search, add_rated_row, &rows);
	tally_end();
	*tallies = rows.tallies;
	return merge_windows(rows.tallies, rows.count);
}
