/*-------------------------------------------------------------------------
 * scan.c
 *		The rows of the ledger that count, by an index of its months.
 *
 * Those are the rows with result = 'allowed', in the active snapshot, of a batch
 * or an agent.  As in lookup.c, they are what a SELECT of the ledger's owner would
 * find, straight by the indexes of the months that can hold them, where each of
 * these is a plain heap with such an index; or else by a statement.
 *
 * Nothing is read while a restore is under way.  What there is to see of one: it
 * gives a table its indexes when the rows are in.  So a month such as kavach
 * makes them, but without any, is being restored, and so is any table without,
 * as long as pg_restore or a COPY into the ledger is at work.  Others are left
 * as they are by those who made them: a default partition, say, or an archived
 * month, which may be foreign, or no heap, and has no need of indexes.
 *
 * That no partition is without indexes is kept until something is invalidated.
 * Partitions are locked as catalogs are, while they are read; the caller has
 * locked the ledger, so that they stay.
 *-------------------------------------------------------------------------
 */
#include "ledger/scan.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/predicate.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "ledger/announce.h"
#include "ledger/ledger.h"
#include "ledger/partition.h"
#include "ledger/place.h"
#include "ledger/row.h"
#include "server/compat.h"
#include "server/index.h"
#include "server/query.h"

/* How many bounds a search has, of either kind. */
#define NUM_SCAN_KEYS	2

/* By which index. */
static const IndexForm forms[NUM_SCAN_KINDS] = {
	[SCAN_BATCH] = FORM_BATCH,
	[SCAN_AGENT] = FORM_AGENT,
};

/* Which column has whose row it is. */
static const LedgerColumnNumber id_columns[NUM_SCOPES] = {
	[SCOPE_AGENT] = COLUMN_agent_id,
	[SCOPE_USER] = COLUMN_user_id,
	[SCOPE_TENANT] = COLUMN_tenant_id,
	[SCOPE_ALL] = NUM_LEDGER_COLUMNS,	/* none */
};

/* When no partition of which ledger was bare. */
static Oid	whole_ledger = InvalidOid;
static uint64 whole_since = 0;

static Statement restoring_sessions = {
	.sql = "SELECT FROM pg_stat_activity"
	" WHERE datname = current_database() AND starts_with(application_name, 'pg_restore')"
	" UNION ALL "
	/* a file that is a foreign table is read with COPY, too */
	"SELECT FROM pg_stat_progress_copy"
	" WHERE datname = current_database() AND command = 'COPY FROM'"
	"   AND relid IN (SELECT 'kavach.audit_log'::regclass"
	"   UNION ALL SELECT c.oid FROM pg_inherits p JOIN pg_class c ON c.oid = p.inhrelid"
	"    WHERE p.inhparent = 'kavach.audit_log'::regclass AND c.relkind = 'r'"
	"      AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid))",
};

/* By ScanKind; the columns are those of found_row. */
#define SELECT_ROWS \
	"SELECT ts, batch, kind, agent_id, user_id, tenant_id, tokens_cost, settles, permission_id" \
	"  FROM kavach.audit_log WHERE result = 'allowed' AND ts >= $1"

static Statement select_rows[NUM_SCAN_KINDS] = {
	[SCAN_BATCH] = {
		.sql = SELECT_ROWS " AND batch >= $2 AND batch <= $3",
		.nargs = 3,
		.argtypes = {TIMESTAMPTZOID, INT8OID, INT8OID},
	},
	[SCAN_AGENT] = {
		.sql = SELECT_ROWS " AND agent_id = $2",
		.nargs = 2,
		.argtypes = {TIMESTAMPTZOID, TEXTOID},
	},
};

/* ---- partitions ---- */

/* All partitions that may hold rows from a time on. */
static List *
partitions_since(Oid ledger, TimestampTz since)
{
	PartitionReach reach = partition_reach(ledger, since, DT_NOEND);

	return OidIsValid(reach.rest) ? lappend_oid(reach.relids, reach.rest) : reach.relids;
}

/* ---- restores ---- */

static bool
is_bare(Oid relid)
{
	Relation	partition = table_open(relid, AccessShareLock);
	bool		bare = place_of(partition)->bare;

	table_close(partition, AccessShareLock);
	return bare;
}

static void
refuse_restored(Oid partition, bool is_month)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(partition)),
												  get_rel_name(partition));

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the ledger is being restored"),
			 errdetail("Its partition %s has no index yet.", name),
			 is_month ?
			 errhint("Wait for the restore to end; if there is none: ALTER TABLE %s ADD PRIMARY KEY (id).", name) :
			 errhint("Wait for pg_restore, or COPY, to end.")));
}

static bool
is_being_restored(void)
{
	OwnerRights owner;
	bool		restored;

	query_begin(&owner);
	restored = query_select(&restoring_sessions, NULL, NULL) > 0;
	query_end(&owner);
	return restored;
}

/* Raises an error while the ledger is being restored.  It is locked. */
void
scan_refuse_during_restore(Oid ledger)
{
	uint64		before;
	Oid			bare = InvalidOid;
	ListCell   *cell;

	announce_refresh(ledger);
	before = place_invalidations();
	if (whole_ledger == ledger && whole_since == before)
		return;
	whole_ledger = InvalidOid;
	foreach(cell, partitions_since(ledger, DT_NOBEGIN))
	{
		Oid			relid = lfirst_oid(cell);

		if (!is_bare(relid))
			continue;
		if (partition_is_month(relid))
			refuse_restored(relid, true);
		if (!OidIsValid(bare))
			bare = relid;
	}
	if (OidIsValid(bare))
	{
		if (is_being_restored())
			refuse_restored(bare, false);
	}
	else if (before == place_invalidations())
	{
		whole_ledger = ledger;
		whole_since = before;
	}
}

/* ---- a row ---- */

/* The time whose windows it counts in. */
static TimestampTz
charged_at(TimestampTz ts, int64 tokens, pg_uuid_t *settles)
{
	LedgerRow	row;

	if (settles == NULL)
		return ts;
	row.ts = ts;
	row.settles = settles;
	row.tokens_cost.value = tokens;
	return ledger_charged_at(&row);
}

static bool
is_text(Datum value, const char *expected)
{
	const text *found = DatumGetTextPP(value);
	size_t		length = strlen(expected);

	return VARSIZE_ANY_EXHDR(found) == length && memcmp(VARDATA_ANY(found), expected, length) == 0;
}

/* Where the values of a column come from: a partition's row, or a statement's. */
typedef Datum (*ColumnFunction) (const void *source, LedgerColumnNumber column, bool *isnull);

static void
read_row(CountedRow *row, ColumnFunction column, const void *source)
{
	bool		isnull;
	Datum		value;

	row->ts = DatumGetTimestampTz(column(source, COLUMN_ts, &isnull));
	value = column(source, COLUMN_batch, &isnull);
	row->batch = DatumGetInt64(value);
	value = column(source, COLUMN_kind, &isnull);
	row->is_call = is_text(value, ledger_kinds[LEDGER_AUTHORIZE]);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		row->ids[scope] = NULL;
		if (id_columns[scope] == NUM_LEDGER_COLUMNS)
			continue;
		value = column(source, id_columns[scope], &isnull);
		if (!isnull)
			row->ids[scope] = DatumGetTextPP(value);
	}
	value = column(source, COLUMN_tokens_cost, &isnull);
	row->tokens = isnull ? 0 : DatumGetInt64(value);
	value = column(source, COLUMN_settles, &isnull);
	row->charged_at = charged_at(row->ts, row->tokens, isnull ? NULL : DatumGetUUIDP(value));
	value = column(source, COLUMN_permission_id, &isnull);
	row->permission_id = isnull ? 0 : DatumGetInt64(value);
}

/* ---- straight ---- */

/* A partition that is to be read. */
typedef struct OpenPartition
{
	Relation	table;
	Relation	index;			/* NULL where there is nothing to read */
	const Place *place;
} OpenPartition;

/* A row of a partition. */
typedef struct StoredRow
{
	TupleTableSlot *slot;
	const Place *place;
} StoredRow;

static Datum
stored_column(const void *source, LedgerColumnNumber column, bool *isnull)
{
	const StoredRow *row = source;

	return slot_getattr(row->slot, row->place->attnums[column], isnull);
}

static void
make_scan_keys(Relation index, const RowSearch *search, ScanKeyData scan_keys[NUM_SCAN_KEYS])
{
	if (search->kind == SCAN_BATCH)
	{
		ScanKeyInit(&scan_keys[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(search->first));
		ScanKeyInit(&scan_keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(search->last));
		return;
	}
	ScanKeyEntryInitialize(&scan_keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, index->rd_indcollation[0],
						   F_TEXTEQ, CStringGetTextDatum(search->agent_id));
	ScanKeyInit(&scan_keys[1], 2, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE, TimestampTzGetDatum(search->since));
}

static void
scan_partition(const OpenPartition *partition, const RowSearch *search, CountedRowFunction function, void *arg)
{
	StoredRow	stored = {table_slot_create(partition->table, NULL), partition->place};
	ScanKeyData scan_keys[NUM_SCAN_KEYS];
	IndexScanDesc scan = compat_index_beginscan(partition->table, partition->index, GetActiveSnapshot(), NUM_SCAN_KEYS);
	CountedRow	row;

	make_scan_keys(partition->index, search, scan_keys);
	index_rescan(scan, scan_keys, NUM_SCAN_KEYS, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, stored.slot))
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if (!is_text(stored_column(&stored, COLUMN_result, &isnull), "allowed"))
			continue;
		read_row(&row, stored_column, &stored);
		if (row.ts >= search->since)
			function(&row, arg);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(stored.slot);
}

static void
close_partition(OpenPartition *partition)
{
	if (partition->index != NULL)
		index_close(partition->index, AccessShareLock);
	table_close(partition->table, AccessShareLock);
}

/* Opens a partition.  Returns false where only a statement can read it. */
static bool
open_partition(OpenPartition *partition, Oid relid, ScanKind kind)
{
	Oid			index_id;

	partition->table = table_open(relid, AccessShareLock);
	partition->place = place_of(partition->table);
	partition->index = NULL;
	index_id = partition->place->indexes[forms[kind]];
	if (OidIsValid(index_id))
	{
		/* next month's, made ahead */
		if (RelationGetNumberOfBlocks(partition->table) == 0)
			return true;
		partition->index = index_open(index_id, AccessShareLock);
		if (index_is_usable(partition->index))
			return true;
	}
	close_partition(partition);
	return false;
}

/* Whether policies say which rows there are. */
static bool
has_row_security(Oid relid)
{
	Relation	relation = table_open(relid, NoLock);
	bool		has = relation->rd_rel->relrowsecurity;

	table_close(relation, NoLock);
	return has;
}

/* Opens all partitions that may hold rows, or returns false. */
static bool
open_partitions(Oid ledger, const RowSearch *search, OpenPartition **partitions, int *count)
{
	List	   *relids = partitions_since(ledger, search->since);
	ListCell   *cell;

	*count = 0;
	if (has_row_security(ledger))
		return false;
	*partitions = palloc(sizeof(OpenPartition) * Max(list_length(relids), 1));
	foreach(cell, relids)
	{
		if (!open_partition(&(*partitions)[*count], lfirst_oid(cell), search->kind))
		{
			while (*count > 0)
				close_partition(&(*partitions)[--*count]);
			return false;
		}
		++*count;
	}
	return true;
}

/* ---- by statement ---- */

static Datum
selected_column(const void *source, LedgerColumnNumber column, bool *isnull)
{
	static const int places[NUM_LEDGER_COLUMNS] = {
		[COLUMN_ts] = 1,
		[COLUMN_batch] = 2,
		[COLUMN_kind] = 3,
		[COLUMN_agent_id] = 4,
		[COLUMN_user_id] = 5,
		[COLUMN_tenant_id] = 6,
		[COLUMN_tokens_cost] = 7,
		[COLUMN_settles] = 8,
		[COLUMN_permission_id] = 9,
	};

	return query_datum(*(const uint64 *) source, places[column], isnull);
}

static void
scan_by_statement(const RowSearch *search, CountedRowFunction function, void *arg)
{
	OwnerRights owner;
	Datum		values[3] = {TimestampTzGetDatum(search->since)};
	CountedRow	row;
	uint64		nrows;

	if (search->kind == SCAN_AGENT)
		values[1] = CStringGetTextDatum(search->agent_id);
	else
	{
		values[1] = Int64GetDatum(search->first);
		values[2] = Int64GetDatum(search->last);
	}
	query_begin(&owner);
	query_open(&select_rows[search->kind], values, NULL);
	while ((nrows = query_fetch(1000)) > 0)
		for (uint64 i = 0; i < nrows; i++)
		{
			read_row(&row, selected_column, &i);
			function(&row, arg);
		}
	query_end(&owner);
}

/* ---- what others call ---- */

/*
 * Has a function look at each row that is found, in no order.  In the active
 * snapshot; the ledger is locked.
 */
void
scan_rows(Oid ledger, const RowSearch *search, CountedRowFunction function, void *arg)
{
	OpenPartition *partitions;
	int			count;

	announce_refresh(ledger);
	if (!open_partitions(ledger, search, &partitions, &count))
	{
		scan_by_statement(search, function, arg);
		return;
	}
	for (int i = 0; i < count; i++)
	{
		if (partitions[i].index != NULL)
			scan_partition(&partitions[i], search, function, arg);
		else
			PredicateLockRelation(partitions[i].table, GetActiveSnapshot());
		close_partition(&partitions[i]);
	}
}
