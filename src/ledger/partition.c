/*-------------------------------------------------------------------------
 * partition.c
 *		The ledger's partitions: how that of a time is found, and how a month's
 *		is made.
 *
 * The parent carries no index; what a partition needs is in partition_ddl.  It
 * is made in the transaction of who asks for it, and known to others at its
 * commit (announce.c).  Who asks, and when, is in months.c.
 *-------------------------------------------------------------------------
 */
#include "ledger/partition.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "ledger/announce.h"
#include "ledger/dropped.h"
#include "server/clock.h"
#include "server/query.h"

/* ---- finding a partition ---- */

/*
 * The last bound of the ledger's at or before a time, or -1.  Between it and the
 * next is partition indexes[bound + 1]; none, if that is -1.
 */
static int
bound_before(PartitionKey key, PartitionBoundInfo bounds, TimestampTz ts)
{
	Datum		value = TimestampTzGetDatum(ts);
	bool		is_equal;

	return partition_range_datum_bsearch(key->partsupfunc, key->partcollation,
										 bounds, 1, &value, &is_equal);
}

/* By its bounds, whatever its name.  One that is being detached is none. */
bool
partition_find(Oid ledger_id, TimestampTz ts, PartitionRange *range)
{
	Relation	ledger = table_open(ledger_id, NoLock);
	PartitionKey key = RelationGetPartitionKey(ledger);
	PartitionDesc partitions = RelationGetPartitionDesc(ledger, true);
	PartitionBoundInfo bounds = partitions->boundinfo;
	bool		found = false;

	if (partitions->nparts > 0)
	{
		int			lower = bound_before(key, bounds, ts);
		int			index = bounds->indexes[lower + 1];

		found = index >= 0;
		if (found)
		{
			range->relid = partitions->oids[index];
			range->start = bounds->kind[lower][0] == PARTITION_RANGE_DATUM_VALUE ?
				DatumGetTimestampTz(bounds->datums[lower][0]) : DT_NOBEGIN;
			range->end = bounds->kind[lower + 1][0] == PARTITION_RANGE_DATUM_VALUE ?
				DatumGetTimestampTz(bounds->datums[lower + 1][0]) : DT_NOEND;
		}
	}
	table_close(ledger, NoLock);
	return found;
}

/* The partitions that may hold rows from since (inclusive) to until (exclusive). */
PartitionReach
partition_reach_in(Relation ledger, TimestampTz since, TimestampTz until)
{
	PartitionKey key = RelationGetPartitionKey(ledger);
	PartitionDesc partitions = RelationGetPartitionDesc(ledger, true);
	PartitionBoundInfo bounds = partitions->boundinfo;
	PartitionReach reach = {NIL, InvalidOid};

	if (partitions->nparts > 0)
	{
		int			first = bound_before(key, bounds, since) + 1;
		int			last = until == DT_NOEND ? bounds->ndatums : bound_before(key, bounds, until - 1) + 1;

		for (int i = last; i >= first; i--)
		{
			if (bounds->indexes[i] >= 0)
				reach.relids = lappend_oid(reach.relids, partitions->oids[bounds->indexes[i]]);
			else if (partition_bound_has_default(bounds))
				reach.rest = partitions->oids[bounds->default_index];
		}
	}
	return reach;
}

PartitionReach
partition_reach(Oid ledger_id, TimestampTz since, TimestampTz until)
{
	Relation	ledger = table_open(ledger_id, NoLock);
	PartitionReach reach = partition_reach_in(ledger, since, until);

	table_close(ledger, NoLock);
	return reach;
}

bool
partition_exists(Oid ledger_id, TimestampTz ts)
{
	PartitionRange range;

	return partition_find(ledger_id, ts, &range);
}

/*
 * Whether the rows of a time, if there are any, are in a heap: what archives
 * them, a foreign table or another access method, may know of no xmin.
 */
bool
partition_is_heap(Oid ledger_id, TimestampTz ts)
{
	PartitionRange range;
	HeapTuple	tuple;
	bool		is_heap;

	if (!partition_find(ledger_id, ts, &range))
		return false;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(range.relid));
	if (!HeapTupleIsValid(tuple))
		return false;
	is_heap = ((Form_pg_class) GETSTRUCT(tuple))->relkind == RELKIND_RELATION &&
		((Form_pg_class) GETSTRUCT(tuple))->relam == HEAP_TABLE_AM_OID;
	ReleaseSysCache(tuple);
	return is_heap;
}

/* Whether a bound is a time; then bound is that. */
static bool
bound_time(List *bounds, TimestampTz *bound)
{
	PartitionRangeDatum *datum = linitial_node(PartitionRangeDatum, bounds);

	if (datum->kind != PARTITION_RANGE_DATUM_VALUE)
		return false;
	*bound = DatumGetTimestampTz(castNode(Const, datum->value)->constvalue);
	return true;
}

/*
 * The start of the month that a partition has, if it is one such as
 * partition_make makes: a UTC month, in a heap.  DT_NOBEGIN of others.
 */
TimestampTz
partition_month(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool		is_month = false;
	bool		isnull;
	Datum		bound;
	TimestampTz start = DT_NOBEGIN;
	TimestampTz end;

	if (!HeapTupleIsValid(tuple))
		return DT_NOBEGIN;
	bound = SysCacheGetAttr(RELOID, tuple, Anum_pg_class_relpartbound, &isnull);
	if (!isnull && ((Form_pg_class) GETSTRUCT(tuple))->relam == HEAP_TABLE_AM_OID)
	{
		PartitionBoundSpec *spec = stringToNode(TextDatumGetCString(bound));

		is_month = !spec->is_default &&
			bound_time(spec->lowerdatums, &start) && bound_time(spec->upperdatums, &end) &&
			start >= CLOCK_START && end <= CLOCK_END &&
			start == period_start(PERIOD_MONTH, start) && end == period_end(PERIOD_MONTH, start);
	}
	ReleaseSysCache(tuple);
	return is_month ? start : DT_NOBEGIN;
}

bool
partition_is_month(Oid relid)
{
	return partition_month(relid) != DT_NOBEGIN;
}

/* ---- making partitions ---- */

/* %1$s: the partition's name; %2$s, %3$s: its bounds */
static const char *const partition_ddl =
"CREATE TABLE kavach.%1$s (LIKE kavach.audit_log INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS INCLUDING COMMENTS);"
"COMMENT ON TABLE kavach.%1$s IS 'The ledger of one UTC month.';"
"ALTER TABLE kavach.%1$s ADD PRIMARY KEY (id);"
"CREATE INDEX %1$s_agent_id_ts_idx ON kavach.%1$s (agent_id, ts) WITH (deduplicate_items = off);"
"CREATE INDEX %1$s_batch_idx ON kavach.%1$s (batch);"
"CREATE UNIQUE INDEX %1$s_settles_idx ON kavach.%1$s (settles) WHERE settles IS NOT NULL;"
"CREATE UNIQUE INDEX %1$s_request_id_idx ON kavach.%1$s (request_id, agent_id, kind)"
"  WHERE request_id IS NOT NULL AND result = 'allowed';"
"CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON kavach.%1$s"
"  FOR EACH STATEMENT EXECUTE FUNCTION kavach.refuse_change();"
"ALTER TABLE kavach.%1$s ENABLE ALWAYS TRIGGER append_only_truncate;"
"SELECT kavach.make_private('kavach.%1$s');"
"ALTER TABLE kavach.audit_log ATTACH PARTITION kavach.%1$s FOR VALUES FROM ('%2$s') TO ('%3$s')";

/* Whatever the session has set for tables of its own must not reach ours. */
static void
pin_table_defaults(void)
{
	(void) set_config_option("default_tablespace", "", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("default_table_access_method", "heap", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

static char *
partition_name(TimestampTz ts)
{
	char	   *start = format_utc(period_start(PERIOD_MONTH, ts));

	return psprintf("audit_log_%.4s_%.2s", start, start + 5);
}

void
partition_make(TimestampTz ts)
{
	OwnerRights caller;
	Oid			owner;
	int			sec_context;
	char	   *name = partition_name(ts);

	if (OidIsValid(get_relname_relid(name, get_namespace_oid("kavach", false))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the ledger has no partition for %s", format_utc(ts)),
				 errdetail("There is a table kavach.%s, but it is no partition of the ledger.", name),
				 errhint("Attach it again, or rename it.")));
	query_begin(&caller);
	pin_table_defaults();
	/* what the owner has event triggers run must not outlive this */
	GetUserIdAndSecContext(&owner, &sec_context);
	SetUserIdAndSecContext(owner, sec_context | SECURITY_RESTRICTED_OPERATION);
	query_utility(psprintf(partition_ddl, name,
						   format_utc(period_start(PERIOD_MONTH, ts)),
						   format_utc(period_end(PERIOD_MONTH, ts))));
	query_end(&caller);
	announce_attached();
}

/*
 * In the worker: makes a month's partition if it is missing and was not dropped,
 * unless another ledger is in place by now, or its lock would have to be waited
 * for.
 */
void
partition_make_if_free(Oid ledger_id, TimestampTz ts)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	if (find_ledger() == ledger_id &&
		ConditionalLockRelationOid(ledger_id, ShareUpdateExclusiveLock) &&
		!partition_exists(ledger_id, ts) && !dropped_is(ts))
		partition_make(ts);
	PopActiveSnapshot();
}
