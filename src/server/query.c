/*-------------------------------------------------------------------------
 * query.c
 *		Runs SQL with the rights of the extension's owner.
 *
 * Callers need EXECUTE on the verbs and nothing else: between query_begin and
 * query_end the backend acts as the owner of the ledger, with a search_path of
 * pg_catalog alone, and every name is schema-qualified besides.  An error in
 * between needs no clean-up: the end of the (sub)transaction puts user and
 * settings back.
 *
 * Reads use the latest snapshot whatever the isolation level, as the locks of
 * lock.c ask for: what has committed before the lock was granted must be seen.
 *
 * SPI leaves its own memory context behind; everything here returns in the
 * caller's, so that results live as long as the call.
 *-------------------------------------------------------------------------
 */
#include "server/query.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

static Oid	ledger = InvalidOid;	/* InvalidOid: to be looked up */

/* What is to be done about the ledger before each; of a floor above. */
static void (*before_each) (Oid ledger) = NULL;

/* Of query_open. */
static Portal opened = NULL;

static void
forget_ledger(Datum arg, int cacheid, uint32 hashvalue)
{
	ledger = InvalidOid;
}

/* The ledger of this database, or InvalidOid. */
Oid
find_ledger(void)
{
	static bool registered = false;
	Oid			schema;

	if (OidIsValid(ledger))
		return ledger;
	if (!registered)
	{
		CacheRegisterSyscacheCallback(RELOID, forget_ledger, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_ledger, (Datum) 0);
		registered = true;
	}
	schema = get_namespace_oid("kavach", true);
	if (OidIsValid(schema))
		ledger = get_relname_relid("audit_log", schema);
	return ledger;
}

/* The same; an error where there is none. */
Oid
ledger_oid(void)
{
	if (!OidIsValid(find_ledger()))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the ledger kavach.audit_log does not exist"),
				 errhint("Create the extension in this database: CREATE EXTENSION kavach.")));
	return ledger;
}

/* Whose rights SQL is run with. */
Oid
query_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(ledger_oid()));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the ledger kavach.audit_log has just been dropped")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Has a function called with the ledger by each query_begin. */
void
query_before_each(void (*function) (Oid ledger))
{
	before_each = function;
}

void
query_begin(OwnerRights *saved)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			owner = query_owner();

	if (before_each != NULL)
		before_each(ledger_oid());

	GetUserIdAndSecContext(&saved->user, &saved->sec_context);
	SetUserIdAndSecContext(owner, saved->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	saved->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(context);
}

void
query_end(OwnerRights *saved)
{
	MemoryContext context = CurrentMemoryContext;

	SPI_finish();
	MemoryContextSwitchTo(context);
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->sec_context);
}

/*
 * A generic plan: the ledger's partitions are pruned when it starts, whereas a
 * custom plan would be made anew for every call.
 */
static SPIPlanPtr
prepared(Statement *statement)
{
	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare_cursor(statement->sql, statement->nargs, statement->argtypes,
											  CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL)
			elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_keepplan failed");
		statement->plan = plan;
	}
	return statement->plan;
}

static void
run(Statement *statement, Datum *values, const char *nulls, Snapshot snapshot, bool read_only)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = prepared(statement);
	int			result;

	result = SPI_execute_snapshot(plan, values, nulls,
								  snapshot, InvalidSnapshot,
								  read_only, true, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s", SPI_result_code_string(result));
	MemoryContextSwitchTo(context);
}

static Snapshot
latest_snapshot(void)
{
	CommandCounterIncrement();
	return GetLatestSnapshot();
}

/*
 * Runs a SELECT and returns the number of rows, which query_text and its
 * siblings read until the next query.
 */
uint64
query_select(Statement *statement, Datum *values, const char *nulls)
{
	run(statement, values, nulls, latest_snapshot(), true);
	return SPI_processed;
}

/* The same in a snapshot that is active: what several statements read is of one moment. */
uint64
query_select_in(Snapshot snapshot, Statement *statement, Datum *values, const char *nulls)
{
	run(statement, values, nulls, snapshot, true);
	return SPI_processed;
}

/* Opens a SELECT in the active snapshot, of whose rows query_fetch brings some at a time. */
void
query_open(Statement *statement, Datum *values, const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;

	opened = SPI_cursor_open(NULL, prepared(statement), values, nulls, true);
	MemoryContextSwitchTo(context);
}

/* The next rows, which query_text and its siblings read; returns how many, 0 at the end. */
uint64
query_fetch(long count)
{
	MemoryContext context = CurrentMemoryContext;

	SPI_freetuptable(SPI_tuptable);
	SPI_cursor_fetch(opened, true, count);
	if (SPI_processed == 0)
		SPI_cursor_close(opened);
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

/* Runs an INSERT or UPDATE and returns the number of rows. */
uint64
query_execute(Statement *statement, Datum *values, const char *nulls)
{
	run(statement, values, nulls, latest_snapshot(), false);
	return SPI_processed;
}

/* Has a statement prepared anew when it is run next. */
void
query_forget(Statement *statement)
{
	if (statement->plan != NULL)
		SPI_freeplan(statement->plan);
	statement->plan = NULL;
}

/*
 * From here to query_end, plans that are made use an index wherever there is
 * one: for a statement whose rows are few, as its generic plan cannot know.
 */
void
query_avoid_scans(void)
{
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * From here to query_end, plans that are made sum up and join in memory what may be
 * many rows, as their generic plan cannot know.
 */
void
query_expect_many(void)
{
	(void) set_config_option("enable_nestloop", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("enable_sort", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("work_mem", "32MB", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/* Runs a utility statement. */
void
query_utility(const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	int			result = SPI_execute(sql, false, 0);

	if (result < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(result));
	MemoryContextSwitchTo(context);
}

/* A value of the last result; columns count from 1, by-reference ones are copied. */
Datum
query_datum(uint64 row, int column, bool *isnull)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	Form_pg_attribute attr = TupleDescAttr(desc, column - 1);
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], desc, column, isnull);

	if (*isnull)
		return (Datum) 0;
	if (attr->attlen == -1)
		return PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	return datumCopy(value, attr->attbyval, attr->attlen);
}

char *
query_text(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

OptionalInt64
query_int64(uint64 row, int column)
{
	OptionalInt64 result = {0};
	bool		isnull;
	Datum		value = query_datum(row, column, &isnull);

	if (!isnull)
	{
		result.given = true;
		result.value = DatumGetInt64(value);
	}
	return result;
}
