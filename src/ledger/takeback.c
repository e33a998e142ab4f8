/*-------------------------------------------------------------------------
 * takeback.c
 *		Puts an archived month back into the ledger.
 *
 * In the caller's transaction, as kavach_create_months makes months.  The table
 * may have been moved, or dumped and restored, in the meantime.  It has to have
 * the rows that it had, as the rollups have them, and to be the ledger owner's:
 * what an owner can put at a table (triggers, defaults, checks) would run with
 * the rights of the ledger's owner.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "ledger/announce.h"
#include "ledger/guard.h"
#include "ledger/months.h"
#include "ledger/takeout.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/lock.h"
#include "server/query.h"

ENTRY_POINT(kavach_attach_month, 2, 0);

static Oid
owner_of(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the table has just been dropped")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* The month's table, as the caller names it, or the record does; locked. */
static Oid
lock_table(TimestampTz month, Oid named)
{
	MonthRecord record;
	Oid			table;

	if (!takeout_find_record(month, &record))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("month %.7s was not taken out of the ledger", format_utc(month))));
	table = OidIsValid(named) ? named : record.relid;
	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 record.relation ? errmsg("table %s does not exist", record.relation) :
				 errmsg("month %.7s was dropped", format_utc(month)),
				 errhint("Where its rows are in another table, such as one restored from a dump, pass that.")));
	lock_relation(table, AccessExclusiveLock);
	if (owner_of(table) != owner_of(ledger_oid()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" must be owned by the owner of the ledger", get_rel_name(table))));
	return table;
}

static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
}

/* %1$s: the table, %2$s: the month's date */
#define COMPARE \
	"SELECT d.rows, d.tokens_cost::text, r.rows, r.tokens::text" \
	"  FROM kavach.dropped_month d," \
	"       (SELECT count(*) AS rows, coalesce(sum(tokens_cost), 0) AS tokens FROM ONLY %1$s) AS r" \
	" WHERE d.month = '%2$s' AND (d.rows, d.tokens_cost) IS DISTINCT FROM (r.rows, r.tokens)"

static void
check_rows(const char *table, const char *date)
{
	Statement	compare = {.sql = psprintf(COMPARE, table, date)};

	if (query_select(&compare, NULL, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s does not have the rows of the month", table),
				 errdetail("They were %lld rows of %s tokens; there are %lld rows of %s tokens.",
						   (long long) query_int64(0, 1).value, query_text(0, 2),
						   (long long) query_int64(0, 3).value, query_text(0, 4))));
	query_forget(&compare);
}

/* %1$s: the table; %2$s, %3$s: the month's bounds */
static const char *const attach_ddl =
"DROP TRIGGER IF EXISTS taken_out ON %1$s;"
"ALTER TABLE kavach.audit_log ATTACH PARTITION %1$s FOR VALUES FROM ('%2$s') TO ('%3$s')";

static const char *const free_ddl =
"DROP TRIGGER IF EXISTS taken_out ON %1$s";

/* %1$s: the table, %2$s: the month's date */
static const char *const forget_sql =
"DELETE FROM kavach.dropped_month WHERE month = '%2$s';"
"INSERT INTO kavach.open_authorization (id)"
"  SELECT a.id FROM ONLY %1$s a"
"   WHERE a.kind = 'authorize' AND a.result = 'allowed' AND a.tokens_cost IS NOT NULL"
"     AND NOT EXISTS (SELECT FROM kavach.audit_log u WHERE u.settles = a.id)"
"   ORDER BY a.id ON CONFLICT DO NOTHING";

/* The trigger goes, which guards a month of the ledger, too. */
static void
attach_table(Oid table, const char *ddl)
{
	guard_let_go(table);
	PG_TRY();
	{
		query_utility(ddl);
	}
	PG_FINALLY();
	{
		guard_let_go(InvalidOid);
	}
	PG_END_TRY();
}

static void
attach(Oid table, TimestampTz month)
{
	OwnerRights caller;
	Oid			owner;
	int			sec_context;
	char	   *name = qualified_name(table);
	char	   *start = format_utc(month);
	char	   *date = psprintf("%.10s", start);

	query_begin(&caller);
	GetUserIdAndSecContext(&owner, &sec_context);
	SetUserIdAndSecContext(owner, sec_context | SECURITY_RESTRICTED_OPERATION);
	check_rows(name, date);
	lock_ledger(ShareUpdateExclusiveLock);
	attach_table(table, psprintf(get_rel_relispartition(table) ? free_ddl : attach_ddl,
								 name, start, format_utc(period_end(PERIOD_MONTH, month))));
	query_utility(psprintf(forget_sql, name, date));
	query_end(&caller);
	announce_attached();
}

/* SQL: kavach_attach_month(month, relation) */
static Datum
kavach_attach_month_checked(PG_FUNCTION_ARGS)
{
	TimestampTz month = months_arg(fcinfo, 0, periods[PERIOD_MONTH].name);

	PreventCommandIfReadOnly("kavach_attach_month()");
	PreventCommandIfParallelMode("kavach_attach_month()");
	lock_begin_call();
	attach(lock_table(month, PG_ARGISNULL(1) ? InvalidOid : PG_GETARG_OID(1)), month);
	PG_RETURN_BOOL(true);
}
