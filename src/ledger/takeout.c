/*-------------------------------------------------------------------------
 * takeout.c
 *		Takes a month out of the ledger: in a worker, in transactions of its own.
 *
 * DETACH ... CONCURRENTLY hinders no reader, but is two transactions, and so
 * runs in no function.  Whatever is to be true when the month is out of sight is
 * made so in the first of the two, before it (takeout_begin):
 *
 *	- Nobody can write into the month.  A lock on the partition waits for those
 *	  who have, and a trigger refuses others when it is given back.  It is a lock
 *	  that readers do not meet, be they exports of hours.
 *	- All rows are in closed batches, and so in the rollups: as many as
 *	  kavach.batch says, and none in a batch of the tail.  So bills, reports of
 *	  whole days and total budgets stay as they are.
 *	- kavach.dropped_month has it, and kavach.open_authorization no row of it, as
 *	  nobody can settle these any more.
 *
 * So for each snapshot the month is in the ledger, or recorded as gone, whatever
 * happens afterwards.  The second transaction waits, without a lock that others
 * could queue behind, for those that may still use the partition.  Where they
 * take longer than the lock timeout, or a crash comes, the partition is left
 * detached half-way.  takeout_finish goes on from wherever it stands: it has
 * the server finalize that, once the snapshots of before are gone (that one
 * waits under locks, so that it is asked when there is nothing to wait for), and
 * drops the table or moves it.
 *
 * kavach.clock can delay all of that, and not bring it forward.
 *-------------------------------------------------------------------------
 */
#include "ledger/takeout.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#include "ledger/announce.h"
#include "ledger/batch.h"
#include "ledger/guard.h"
#include "ledger/ledger.h"
#include "ledger/partition.h"
#include "server/clock.h"
#include "server/compat.h"
#include "server/lock.h"
#include "server/query.h"

#define PATIENCE	100			/* times that old snapshots are looked for */
#define PAUSE		100			/* ms between two of them */

/* ---- transactions of the worker ---- */

/* What is allocated in a step is the caller's, and outlives its transaction. */
static void
begin_step(const char *activity)
{
	MemoryContext context = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, activity);
	MemoryContextSwitchTo(context);
}

static void
end_step(void)
{
	MemoryContext context = CurrentMemoryContext;

	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);
	MemoryContextSwitchTo(context);
}

/*
 * Runs a utility statement as if a client had sent it: one that commits, and
 * goes on in another transaction.  There is no active snapshot.
 */
static void
run_at_top_level(const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	RawStmt    *parsed = linitial_node(RawStmt, pg_parse_query(sql));
	PlannedStmt *statement = makeNode(PlannedStmt);
	Portal		portal = CreateNewPortal();

	statement->commandType = CMD_UTILITY;
	statement->canSetTag = true;
	statement->utilityStmt = parsed->stmt;
	portal->visible = false;
	PortalDefineQuery(portal, NULL, sql, CreateCommandTag(parsed->stmt), list_make1(statement), NULL);
	PortalStart(portal, NULL, 0, InvalidSnapshot);
	compat_portal_run(portal);
	PortalDrop(portal, false);
	MemoryContextSwitchTo(context);
}

/* A statement whose text names a table, and that is run once. */
static uint64
select_once(const char *sql)
{
	Statement	statement = {.sql = sql};
	uint64		nrows = query_select(&statement, NULL, NULL);

	query_forget(&statement);
	return nrows;
}

static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
}

static Datum
month_date(TimestampTz month)
{
	return DateADTGetDatum((DateADT) (month / USECS_PER_DAY));
}

static char *
month_name(TimestampTz month)
{
	return psprintf("%.7s", format_utc(month));
}

/* ---- what there is of a month ---- */

static Statement read_record = {
	.sql = "SELECT kind, relation, coalesce(to_regclass(relation)::oid, 0), schema, finished_at"
	" FROM kavach.dropped_month WHERE month = $1",
	.nargs = 1,
	.argtypes = {DATEOID},
};

static Statement finish_record = {
	.sql = "UPDATE kavach.dropped_month SET relation = $2, finished_at = clock_timestamp() WHERE month = $1",
	.nargs = 2,
	.argtypes = {DATEOID, TEXTOID},
};

/* What kavach.dropped_month has of a month, if it has it. */
bool
takeout_find_record(TimestampTz month, MonthRecord *record)
{
	OwnerRights owner;
	Datum		value = month_date(month);
	bool		isnull;
	bool		found;

	query_begin(&owner);
	found = query_select(&read_record, &value, NULL) > 0;
	if (found)
	{
		record->archived = strcmp(query_text(0, 1), "archived") == 0;
		record->relation = query_text(0, 2);
		record->relid = DatumGetObjectId(query_datum(0, 3, &isnull));
		record->schema = query_text(0, 4);
		(void) query_datum(0, 5, &isnull);
		record->finished = !isnull;
	}
	query_end(&owner);
	return found;
}

/* The month's partition as far as new snapshots see it, or InvalidOid.  Locks the ledger as readers do. */
static Oid
attached_partition(Oid ledger, TimestampTz month)
{
	PartitionRange range;

	lock_relation(ledger, AccessShareLock);
	if (ledger != ledger_oid() || !partition_find(ledger, month, &range))
		return InvalidOid;
	return range.relid;
}

TakeoutState
takeout_state(Oid ledger, TimestampTz month)
{
	TakeoutState state = TAKEOUT_NONE;
	MonthRecord record;

	begin_step("looking at a month of the ledger");
	if (OidIsValid(attached_partition(ledger, month)))
		state = takeout_find_record(month, &record) ? TAKEOUT_RESTORED : TAKEOUT_ATTACHED;
	else if (takeout_find_record(month, &record))
		state = record.finished ? TAKEOUT_DONE : TAKEOUT_BEGUN;
	end_step();
	return state;
}

/* ---- whether it may go ---- */

/* What tells of the time: a clock that stands in the past does not make a month older. */
static TimestampTz
earlier_clock(void)
{
	return Min(clock_now(), GetCurrentTimestamp());
}

static bool
is_old_enough(TimestampTz month, int keep_minutes)
{
	int			minutes = Max(keep_minutes, ledger_request_retention());

	return period_end(PERIOD_MONTH, month) + minutes * USECS_PER_MINUTE <= earlier_clock();
}

static void
check_age(const Takeout *takeout)
{
	TimestampTz end = period_end(PERIOD_MONTH, takeout->month);

	if (end > earlier_clock())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("month %s is not over", month_name(takeout->month))));
	if (!is_old_enough(takeout->month, takeout->keep_minutes))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("month %s is still needed", month_name(takeout->month)),
				 errdetail("It has request_ids that are remembered until %s.",
						   format_utc(end + ledger_request_retention() * USECS_PER_MINUTE)),
				 errhint("kavach.request_retention says for how long.")));
}

static void
check_kind(Oid ledger, Oid partition, TimestampTz month)
{
	if (partition_month(partition) != month)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" is no month of kavach's", get_rel_name(partition)),
				 errdetail("It has other bounds than a UTC month, or is no plain table."),
				 errhint("Detach it yourself, with kavach.allow_drop on.")));
	if (OidIsValid(get_default_partition_oid(ledger)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot take months out of the ledger while it has a default partition"),
				 errdetail("PostgreSQL detaches no partition concurrently beside \"%s\".",
						   get_rel_name(get_default_partition_oid(ledger))),
				 errhint("Put its rows into months of their own (kavach_create_months), and drop it.")));
}

static int64
count_rows(const char *name)
{
	OwnerRights owner;
	int64		count;

	query_begin(&owner);
	(void) select_once(psprintf("SELECT count(*) FROM ONLY %s", name));
	count = query_int64(0, 1).value;
	query_end(&owner);
	return count;
}

/* Between query_begin and query_end; nobody can write rows any more. */
static void
check_closed(const char *name, TimestampTz month)
{
	(void) select_once(psprintf("SELECT (SELECT count(*) FROM ONLY %1$s WHERE batch = ANY ((SELECT open FROM kavach.tail)::bigint[]))"
								" + (SELECT count(*) FROM ONLY %1$s WHERE batch > (SELECT high FROM kavach.tail))", name));
	if (query_int64(0, 1).value > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("month %s has rows in batches that are not closed yet", month_name(month)),
				 errdetail("There are %lld of them. A transaction that has called kavach holds a batch open until it ends.",
						   (long long) query_int64(0, 1).value),
				 errhint("Retry later.")));
}

static void
check_folded(int64 counted, int64 folded, TimestampTz month)
{
	if (counted != folded)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the rollups do not have all rows of month %s", month_name(month)),
				 errdetail("It has %lld rows, closed batches %lld.", (long long) counted, (long long) folded),
				 errhint("Retry, as rows may just have come. Rows that were put in by hand must not bring the number of a batch with them.")));
}

/*
 * What settles an authorization of a later month, which a clock that was set
 * back makes, must stay as long as that: it could be settled again.
 */
static void
check_settlements(const char *name, TimestampTz month)
{
	pg_uuid_t	first = ledger_first_id(period_end(PERIOD_MONTH, month));

	if (select_once(psprintf("SELECT FROM ONLY %s s WHERE s.settles >= '%s' AND EXISTS"
							 " (SELECT FROM kavach.audit_log a WHERE a.id = s.settles AND a.ts >= '%s') LIMIT 1",
							 name, DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&first))),
							 format_utc(period_end(PERIOD_MONTH, month)))) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("month %s is still needed", month_name(month)),
				 errdetail("Rows of it settle authorizations of later months."),
				 errhint("Drop those first.")));
}

/* ---- the first transaction ---- */

static Statement write_record = {
	.sql = "INSERT INTO kavach.dropped_month"
	" (month, kind, dropped_at, dropped_by, relation, schema, rows, calls, tokens_cost, first_seal_no, last_seal_no)"
	" SELECT $1, $2, clock_timestamp(), $3, $4, $5, coalesce(sum(b.rows), 0), coalesce(sum(b.calls), 0),"
	"        coalesce(sum(b.tokens_cost), 0), min(b.seal_no), max(b.seal_no)"
	"   FROM kavach.batch b WHERE b.month = $1"
	" ON CONFLICT (month) DO UPDATE SET kind = excluded.kind, dropped_at = excluded.dropped_at,"
	" dropped_by = excluded.dropped_by, relation = excluded.relation, schema = excluded.schema, rows = excluded.rows,"
	" calls = excluded.calls, tokens_cost = excluded.tokens_cost, first_seal_no = excluded.first_seal_no,"
	" last_seal_no = excluded.last_seal_no, finished_at = NULL"
	" RETURNING rows",
	.nargs = 5,
	.argtypes = {DATEOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID},
};

static Statement forget_open = {
	.sql = "DELETE FROM kavach.open_authorization WHERE id >= $1 AND id < $2",
	.nargs = 2,
	.argtypes = {UUIDOID, UUIDOID},
};

/* Records the month as gone; returns how many rows closed batches have of it. */
static int64
record_month(const Takeout *takeout, const char *name)
{
	char	   *role = OidIsValid(takeout->role) ? GetUserNameFromId(takeout->role, true) : NULL;
	pg_uuid_t	first = ledger_first_id(takeout->month);
	pg_uuid_t	next = ledger_first_id(period_end(PERIOD_MONTH, takeout->month));
	Datum		ids[] = {UUIDPGetDatum(&first), UUIDPGetDatum(&next)};
	Datum		values[] = {
		month_date(takeout->month),
		CStringGetTextDatum(takeout->archive ? "archived" : "dropped"),
		role ? CStringGetTextDatum(role) : (Datum) 0,
		CStringGetTextDatum(name),
		takeout->schema ? CStringGetTextDatum(takeout->schema) : (Datum) 0,
	};
	char		nulls[] = {' ', ' ', role ? ' ' : 'n', ' ', takeout->schema ? ' ' : 'n'};
	int64		rows;

	(void) query_execute(&write_record, values, nulls);
	rows = query_int64(0, 1).value;
	(void) query_execute(&forget_open, ids, NULL);
	return rows;
}

/* %s: the table */
static const char *const refuse_rows_ddl =
"DROP TRIGGER IF EXISTS taken_out ON %1$s;"
"CREATE TRIGGER taken_out BEFORE INSERT OR UPDATE OR DELETE ON %1$s"
"  FOR EACH ROW EXECUTE FUNCTION kavach.refuse_change();"
"ALTER TABLE %1$s ENABLE ALWAYS TRIGGER taken_out";

/* Checks, and records, what has to hold at the commit that takes the month out of sight. */
static void
prepare(const Takeout *takeout, Oid partition, int64 counted)
{
	const char *name = qualified_name(partition);
	OwnerRights caller;
	Oid			owner;
	int			sec_context;
	int64		folded;

	lock_relation(partition, ShareRowExclusiveLock);
	if (attached_partition(takeout->ledger, takeout->month) != partition)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("month %s was taken out meanwhile", month_name(takeout->month))));
	query_begin(&caller);
	GetUserIdAndSecContext(&owner, &sec_context);
	SetUserIdAndSecContext(owner, sec_context | SECURITY_RESTRICTED_OPERATION);
	folded = record_month(takeout, name);
	query_avoid_scans();
	check_closed(name, takeout->month);
	check_folded(counted, folded, takeout->month);
	check_settlements(name, takeout->month);
	query_utility(psprintf(refuse_rows_ddl, name));
	query_end(&caller);
	announce_attached();
}

/* Rows that are ready for it are folded first. */
static void
close_batches(Oid ledger)
{
	BatchTail	left;

	begin_step("closing batches of the ledger");
	lock_relation(ledger, RowExclusiveLock);
	if (ledger == ledger_oid())
		(void) batch_close_ready(ledger, &left);
	end_step();
}

/*
 * Takes the month out of sight, for good, and its partition out of the ledger
 * if that can be had within the lock timeout; otherwise it raises an error, and
 * takeout_state tells how far it has come.
 */
void
takeout_begin(const Takeout *takeout)
{
	Oid			partition;
	int64		counted;
	char	   *detach;

	close_batches(takeout->ledger);

	begin_step("counting the rows of a month of the ledger");
	check_age(takeout);
	partition = attached_partition(takeout->ledger, takeout->month);
	if (!OidIsValid(partition))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("month %s was taken out meanwhile", month_name(takeout->month))));
	check_kind(takeout->ledger, partition, takeout->month);
	counted = count_rows(qualified_name(partition));
	detach = psprintf("ALTER TABLE kavach.audit_log DETACH PARTITION %s CONCURRENTLY", qualified_name(partition));
	end_step();

	begin_step("taking a month out of the ledger");
	guard_let_go(partition);
	prepare(takeout, partition, counted);
	PopActiveSnapshot();
	run_at_top_level(detach);
	guard_let_go(InvalidOid);
	announce_attached();
	end_step();
}

/* ---- and the rest of the way ---- */

/* Who has a snapshot of before. */
static int
old_snapshots(TransactionId xmin, VirtualTransactionId **snapshots)
{
	int			count;

	*snapshots = GetCurrentVirtualXIDs(xmin, true, false, PROC_IS_AUTOVACUUM | PROC_IN_VACUUM | PROC_IN_SAFE_IC, &count);
	return count;
}

static bool
is_among(VirtualTransactionId one, const VirtualTransactionId *others, int count)
{
	for (int i = 0; i < count; i++)
		if (VirtualTransactionIdEquals(one, others[i]))
			return true;
	return false;
}

static void
pause_a_moment(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, PAUSE, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Waits a while, with no lock, for the snapshots that there are now; returns whether they are gone. */
static bool
old_snapshots_go(void)
{
	TransactionId xmin;
	VirtualTransactionId *first;
	int			nfirst;
	int			left;

	begin_step("waiting for older snapshots");
	xmin = GetActiveSnapshot()->xmin;
	nfirst = old_snapshots(xmin, &first);
	end_step();
	left = nfirst;
	for (int i = 0; left > 0 && i < PATIENCE; i++)
	{
		VirtualTransactionId *now;
		int			nnow;

		pause_a_moment();
		nnow = old_snapshots(xmin, &now);
		left = 0;
		for (int j = 0; j < nfirst; j++)
			left += is_among(first[j], now, nnow);
		pfree(now);
	}
	return left == 0;
}

/* Has the server finalize what is detached half-way. */
static bool
finalize(Oid partition, const char *name)
{
	if (!old_snapshots_go())
		return false;
	begin_step("taking a month out of the ledger");
	PopActiveSnapshot();
	guard_let_go(partition);
	run_at_top_level(psprintf("ALTER TABLE kavach.audit_log DETACH PARTITION %s FINALIZE", name));
	guard_let_go(InvalidOid);
	announce_attached();
	end_step();
	return true;
}

/* The table of that name is the month's: takeout_begin has put the trigger there. */
static void
check_is_ours(const MonthRecord *record)
{
	if (!OidIsValid(get_trigger_oid(record->relid, "taken_out", true)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s is not the one that was taken out of the ledger", record->relation),
				 errhint("Rename or drop it.")));
}

/* Drops the month's table, or moves it; and writes down that this was the end of it. */
static void
settle_table(TimestampTz month, const MonthRecord *record)
{
	OwnerRights owner;
	char	   *relation = record->archived ? record->relation : NULL;
	Datum		values[2];
	char		nulls[2] = {' ', ' '};

	begin_step(record->archived ? "archiving a month of the ledger" : "dropping a month of the ledger");
	query_begin(&owner);
	if (!record->archived && OidIsValid(record->relid))
		query_utility(psprintf("DROP TABLE %s", record->relation));
	if (record->archived && OidIsValid(record->relid) && record->schema != NULL)
	{
		relation = quote_qualified_identifier(record->schema, get_rel_name(record->relid));
		if (get_rel_namespace(record->relid) != get_namespace_oid(record->schema, true))
			query_utility(psprintf("ALTER TABLE %s SET SCHEMA %s", record->relation, quote_identifier(record->schema)));
	}
	values[0] = month_date(month);
	values[1] = relation ? CStringGetTextDatum(relation) : (Datum) 0;
	nulls[1] = relation ? ' ' : 'n';
	(void) query_execute(&finish_record, values, nulls);
	query_end(&owner);
	end_step();
	ereport(LOG,
			(errmsg("month %s of the ledger was %s", month_name(month), record->archived ? "archived" : "dropped")));
}

/*
 * Goes on with what takeout_begin has begun; returns whether it has come to its
 * end, or others have to end first, who are waited for a while if it is to be
 * patient.
 */
bool
takeout_finish(Oid ledger, TimestampTz month, bool patient)
{
	MonthRecord record;
	bool		pending;

	begin_step("looking at a month of the ledger");
	if (!takeout_find_record(month, &record) || record.finished)
	{
		end_step();
		return true;
	}
	if (OidIsValid(record.relid))
		check_is_ours(&record);
	pending = OidIsValid(record.relid) && get_rel_relispartition(record.relid);
	end_step();
	if (pending && !(patient && finalize(record.relid, record.relation)))
		return false;
	settle_table(month, &record);
	return true;
}

/* ---- which months there are to see to ---- */

static Statement read_unfinished = {
	.sql = "SELECT month FROM kavach.dropped_month WHERE finished_at IS NULL ORDER BY month",
};

/* As pointers to TimestampTz. */
static List *
add_month(List *months, TimestampTz month)
{
	TimestampTz *copy = palloc(sizeof(TimestampTz));

	*copy = month;
	return lappend(months, copy);
}

/* Months that were recorded, and whose tables are not settled. */
List *
takeout_unfinished(Oid ledger)
{
	OwnerRights owner;
	List	   *months = NIL;
	uint64		count;

	begin_step("looking for months to take out of the ledger");
	lock_relation(ledger, AccessShareLock);
	if (ledger == find_ledger())
	{
		query_begin(&owner);
		count = query_select(&read_unfinished, NULL, NULL);
		for (uint64 i = 0; i < count; i++)
		{
			bool		isnull;

			months = add_month(months, DatumGetDateADT(query_datum(i, 1, &isnull)) * USECS_PER_DAY);
		}
		query_end(&owner);
	}
	end_step();
	return months;
}

/* Months of the ledger that ended so long ago, the oldest first. */
List *
takeout_older_than(Oid ledger, int keep_minutes)
{
	List	   *months = NIL;
	List	   *relids = NIL;

	begin_step("looking for months to take out of the ledger");
	lock_relation(ledger, AccessShareLock);
	if (ledger == find_ledger())
		relids = partition_reach(ledger, CLOCK_START, earlier_clock()).relids;
	for (int i = list_length(relids) - 1; i >= 0; i--)
	{
		TimestampTz month = partition_month(list_nth_oid(relids, i));

		if (month != DT_NOBEGIN && is_old_enough(month, keep_minutes))
			months = add_month(months, month);
	}
	end_step();
	return months;
}

static Statement read_setting = {
	.sql = "SELECT split_part(c, '=', 2)"
	"  FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS c"
	" WHERE s.setrole = 0 AND s.setdatabase = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"
	"   AND c LIKE 'kavach.retention=%'",
};

/* kavach.retention as the database has it now, which a worker that has been there longer does not know; or NULL. */
char *
takeout_database_setting(void)
{
	OwnerRights owner;
	char	   *value = NULL;

	begin_step("looking for months to take out of the ledger");
	if (OidIsValid(find_ledger()))
	{
		query_begin(&owner);
		if (query_select(&read_setting, NULL, NULL) > 0)
			value = query_text(0, 1);
		query_end(&owner);
	}
	end_step();
	return value;
}

/* ---- who is in the way ---- */

static Statement find_blockers = {
	.sql = "SELECT string_agg(DISTINCT l.pid::text, ', ') FROM pg_locks l"
	" WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()"
	"   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"
	"   AND l.relation IN (SELECT $1 UNION ALL SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = $1)",
	.nargs = 1,
	.argtypes = {OIDOID},
};

/* The processes that use the ledger, as a list; or NULL. */
char *
takeout_blockers(Oid ledger)
{
	OwnerRights owner;
	Datum		value = ObjectIdGetDatum(ledger);
	char	   *pids;

	begin_step("looking for who uses the ledger");
	query_begin(&owner);
	(void) query_select(&find_blockers, &value, NULL);
	pids = query_text(0, 1);
	query_end(&owner);
	end_step();
	return pids;
}
