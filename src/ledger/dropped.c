/*-------------------------------------------------------------------------
 * dropped.c
 *		Months whose rows the ledger has no more.
 *
 * kavach.dropped_month has a row for each month that was dropped or archived,
 * from the very transaction on that takes its partition out of sight
 * (takeout.c).  So in each snapshot a month is either in the ledger or in here,
 * and who needs its rows says that they are gone, instead of adding up what is
 * left.
 *
 * Reports ask with the snapshot of their query, once for each of its plans, and
 * look at nothing where no month has ever been dropped.  They ask in the
 * planner, too, and in parallel workers; so the few rows are scanned as they
 * are, without SQL.
 *-------------------------------------------------------------------------
 */
#include "ledger/dropped.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "server/argument.h"
#include "server/clock.h"
#include "server/compat.h"
#include "server/errors.h"

/* Columns of kavach.dropped_month. */
#define ATTR_MONTH		1
#define ATTR_KIND		2
#define ATTR_DROPPED_AT 3

typedef struct DroppedMonth
{
	TimestampTz start;
	TimestampTz end;
	bool		archived;
	TimestampTz at;
} DroppedMonth;

ENTRY_POINT(kavach_require_months, 2, 0);
ENTRY_POINT(kavach_kept_since, 2, 0);
ENTRY_POINT(kavach_no_rows, 2, 0);

static DroppedMonth
read_month(TupleTableSlot *slot)
{
	DroppedMonth month;
	bool		isnull;

	month.start = DatumGetDateADT(slot_getattr(slot, ATTR_MONTH, &isnull)) * USECS_PER_DAY;
	month.end = period_end(PERIOD_MONTH, month.start);
	month.archived = strcmp(TextDatumGetCString(slot_getattr(slot, ATTR_KIND, &isnull)), "archived") == 0;
	month.at = DatumGetTimestampTz(slot_getattr(slot, ATTR_DROPPED_AT, &isnull));
	return month;
}

/* The last of the dropped months in the table that have a part in [since, until). */
static bool
scan_months(Relation table, TimestampTz since, TimestampTz until, Snapshot snapshot, DroppedMonth *last)
{
	TupleTableSlot *slot = table_slot_create(table, NULL);
	TableScanDesc scan = compat_table_beginscan(table, snapshot);
	bool		found = false;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		DroppedMonth month = read_month(slot);

		if (month.start >= until || month.end <= since || (found && month.start < last->start))
			continue;
		*last = month;
		found = true;
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found;
}

/* The same; false where the extension is yet to be updated, and has no such table. */
static bool
find_last(TimestampTz since, TimestampTz until, Snapshot snapshot, DroppedMonth *last)
{
	Oid			schema = get_namespace_oid("kavach", true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid("dropped_month", schema) : InvalidOid;
	Relation	table;
	bool		found = false;

	if (!OidIsValid(relid))
		return false;
	table = table_open(relid, AccessShareLock);
	if (RelationGetNumberOfBlocks(table) > 0)
		found = scan_months(table, since, until, snapshot, last);
	table_close(table, AccessShareLock);
	return found;
}

static void
report_dropped(const DroppedMonth *month, const char *hint)
{
	char	   *name = format_utc(month->start);

	ereport(ERROR,
			(errcode(ERRCODE_KAVACH_MONTH_DROPPED),
			 errmsg("the ledger has no rows of %.7s any more", name),
			 errdetail("The month was %s at %s.", month->archived ? "archived" : "dropped", format_utc(month->at)),
			 month->archived ? errhint("Attach it again: SELECT kavach_attach_month('%.10s').", name) :
			 errhint("%s", hint)));
}

/* ---- for who writes rows, or looks for one ---- */

static bool
find_now(TimestampTz ts, DroppedMonth *month)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		found = find_last(ts, ts + 1, snapshot, month);

	UnregisterSnapshot(snapshot);
	return found;
}

/* Whether the month of a time was dropped or archived. */
bool
dropped_is(TimestampTz ts)
{
	DroppedMonth month;

	return find_now(ts, &month);
}

/* Raises an error where it was.  The hint is for a month that will not come back. */
void
dropped_refuse(TimestampTz ts, const char *hint)
{
	DroppedMonth month;

	if (find_now(ts, &month))
		report_dropped(&month, hint);
}

/* ---- for reports ---- */

/* The last answer to a call in a plan, and what it was for: bounds may be asked for with every row. */
typedef struct LastAnswer
{
	bool		valid;
	TimestampTz since;
	TimestampTz until;
	TransactionId xmin;
	TransactionId xmax;
	uint32		xcnt;
	CommandId	curcid;
	TimestampTz bound;
} LastAnswer;

/* Transactions that are under way only get fewer until xmax grows: so these tell snapshots apart. */
static bool
is_same(const LastAnswer *last, TimestampTz since, TimestampTz until, Snapshot snapshot)
{
	return last->valid && last->since == since && last->until == until &&
		last->xmin == snapshot->xmin && last->xmax == snapshot->xmax &&
		last->xcnt == snapshot->xcnt && last->curcid == snapshot->curcid;
}

/*
 * Where the rows from since to until begin that the ledger has, without a gap;
 * "open": since has no bound, and a gap is where they begin.
 */
static TimestampTz
find_bound(TimestampTz since, TimestampTz until, bool open, Snapshot snapshot)
{
	DroppedMonth last;

	if (since >= until || !find_last(since, until, snapshot, &last))
		return since;
	if (!open || last.end >= until)
		report_dropped(&last,
					   psprintf("Rows are there from %s on. Whole days and months before are still reported by tenant, user, agent, provider and model.",
								format_utc(last.end)));
	return last.end;
}

static Datum
answer_bound(FunctionCallInfo fcinfo, bool begin_after_gap)
{
	TimestampTz since = PG_ARGISNULL(0) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(0);
	TimestampTz until = PG_ARGISNULL(1) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(1);
	Snapshot	snapshot = GetActiveSnapshot();
	LastAnswer *last = kept_for_calls(fcinfo, sizeof(LastAnswer));

	if (!is_same(last, since, until, snapshot))
		*last = (LastAnswer)
	{
		.valid = true,
			.since = since,
			.until = until,
			.xmin = snapshot->xmin,
			.xmax = snapshot->xmax,
			.xcnt = snapshot->xcnt,
			.curcid = snapshot->curcid,
			.bound = find_bound(since, until, begin_after_gap && since == DT_NOBEGIN, snapshot),
	};
	PG_RETURN_TIMESTAMPTZ(last->bound);
}

/* SQL: kavach.require_months(since, until) */
static Datum
kavach_require_months_checked(PG_FUNCTION_ARGS)
{
	return answer_bound(fcinfo, false);
}

/* SQL: kavach.kept_since(since, until) */
static Datum
kavach_kept_since_checked(PG_FUNCTION_ARGS)
{
	return answer_bound(fcinfo, true);
}

/*
 * SQL: kavach.no_rows(checked, row)
 *
 * A bound is not evaluated where the planner sees that no partition has rows
 * within it; the argument of this is.
 */
static Datum
kavach_no_rows_checked(PG_FUNCTION_ARGS)
{
	((ReturnSetInfo *) fcinfo->resultinfo)->isDone = ExprEndResult;
	PG_RETURN_NULL();
}
