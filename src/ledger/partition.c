/*-------------------------------------------------------------------------
 * partition.c
 *		The ledger's months: how a partition is made, and how a row goes
 *		straight into one.
 *
 * A missing partition is made by a worker, in a transaction of its own, and by
 * the call that needs it only where there is no worker (worker.c): then a
 * second caller waits for the first one's transaction, on a lock of ours.  Next
 * month's is made ahead, by a worker alone.  Whoever needs others, because rows
 * are to come there by another way than calls, has them made with
 * kavach_create_months.  The parent carries no index; what a partition needs is
 * in partition_ddl.
 *
 * ATTACH locks the parent in a way that hinders nobody, so that a backend may
 * take in the invalidation that it sends just while it makes its list of
 * partitions (in RelationBuildPartitionDesc, a syscache miss on a partition
 * opens pg_class), and then keeps a list without the new one: rows that are
 * committed stay out of sight until the parent's next invalidation.  (Tried, on
 * PostgreSQL 15, and seen under load at the first calls of a month.)  So a
 * counter in shared memory is advanced at the commit of each ATTACH, before
 * the usage counters are let go, and who finds it advanced makes list and plans
 * anew (partition_refresh).  For sessions that only run reports, the worker
 * invalidates the parent once more when it has committed, and the backend that
 * had it attached with its next row.
 *
 * A row goes into the heap and its indexes as an INSERT would put it there,
 * with its constraints checked, but what the executor prepares anew for every
 * statement is prepared once for a partition, and again after an invalidation
 * of it.  So only where nothing else is to be done: a plain heap with plain
 * B-tree indexes, without triggers on INSERT, row security, rules, generated
 * columns, or columns of others that get a value of their own; and only with
 * constraints and predicates made of the server's own immutable functions.  A
 * function of somebody else's may be replaced, which invalidates no relation,
 * and would run with the caller's rights and settings instead of the owner's.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "port/atomics.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define MAX_MONTHS	240			/* made at a time; each takes some ten locks */

#define NUM_SLOTS	64
#define SLOT		(MyDatabaseId % NUM_SLOTS)

/* By slot of database. */
typedef struct PartitionShared
{
	pg_atomic_uint64 generations[NUM_SLOTS];	/* of attached partitions */
	pg_atomic_uint64 tried[NUM_SLOTS];	/* when a next month was made last */
} PartitionShared;

ENTRY_POINT(kavach_create_months, 2, 0);

static PartitionShared *shared = NULL;
static uint64 seen_generation = 0;	/* that list and plans were made at */
static bool attached = false;	/* by this transaction */
static bool announce_again = false; /* an ATTACH that has committed */
static bool announcing = false; /* with this transaction's commit */

/* ---- attached partitions ---- */

Size
partition_shmem_size(void)
{
	return MAXALIGN(sizeof(PartitionShared));
}

/* Called with AddinShmemInitLock held. */
void
partition_shmem_startup(void)
{
	bool		found;

	shared = ShmemInitStruct("kavach partitions", sizeof(PartitionShared), &found);
	for (int i = 0; i < NUM_SLOTS && !found; i++)
	{
		pg_atomic_init_u64(&shared->generations[i], 0);
		pg_atomic_init_u64(&shared->tried[i], 0);
	}
}

/* Makes sure that what others have attached and committed is seen. */
void
partition_refresh(Oid ledger)
{
	uint64		now;

	if (shared == NULL)
		return;
	now = pg_atomic_read_u64(&shared->generations[SLOT]);
	if (now == seen_generation)
		return;
	seen_generation = now;
	pg_read_barrier();
	RelationCacheInvalidateEntry(ledger);
	ResetPlanCache();
}

/* Whether this transaction has made partitions, which are others' at its commit. */
bool
partition_has_attached(void)
{
	return attached;
}

/* At the end of the transaction, before its counters are let go: nothing may fail. */
void
partition_end_transaction(bool commit)
{
	if (announcing && commit)
		announce_again = false;
	announcing = false;
	if (attached && commit)
	{
		announce_again = true;
		if (shared != NULL)
			pg_atomic_fetch_add_u64(&shared->generations[SLOT], 1);
	}
	attached = false;
}

/* ---- finding a partition ---- */

/* A partition, and the times that it takes. */
typedef struct PartitionRange
{
	Oid			relid;
	TimestampTz start;
	TimestampTz end;
} PartitionRange;

/* By its bounds, whatever its name.  One that is being detached is none. */
static bool
find_range(Oid ledger_id, TimestampTz ts, PartitionRange *range)
{
	Relation	ledger = table_open(ledger_id, NoLock);
	PartitionKey key = RelationGetPartitionKey(ledger);
	PartitionDesc partitions = RelationGetPartitionDesc(ledger, true);
	PartitionBoundInfo bounds = partitions->boundinfo;
	bool		found = false;

	if (partitions->nparts > 0)
	{
		Datum		value = TimestampTzGetDatum(ts);
		bool		is_equal;
		int			lower = partition_range_datum_bsearch(key->partsupfunc, key->partcollation,
														  bounds, 1, &value, &is_equal);
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

static bool
has_partition(Oid ledger_id, TimestampTz ts)
{
	PartitionRange range;

	return find_range(ledger_id, ts, &range);
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

	if (!find_range(ledger_id, ts, &range))
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

/* Whether a partition is one such as make_partition makes: a UTC month, in a heap. */
bool
partition_is_month(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool		is_month = false;
	bool		isnull;
	Datum		bound;
	TimestampTz start;
	TimestampTz end;

	if (!HeapTupleIsValid(tuple))
		return false;
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
	return is_month;
}

/* ---- making partitions ---- */

/* %1$s: the partition's name; %2$s, %3$s: its bounds */
static const char *const partition_ddl =
"CREATE TABLE kavach.%1$s (LIKE kavach.audit_log INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS INCLUDING COMMENTS);"
"COMMENT ON TABLE kavach.%1$s IS 'The ledger of one UTC month.';"
"ALTER TABLE kavach.%1$s ADD PRIMARY KEY (id);"
"CREATE INDEX %1$s_agent_id_ts_idx ON kavach.%1$s (agent_id, ts);"
"CREATE INDEX %1$s_batch_idx ON kavach.%1$s (batch);"
"CREATE UNIQUE INDEX %1$s_settles_idx ON kavach.%1$s (settles) WHERE settles IS NOT NULL;"
"CREATE UNIQUE INDEX %1$s_request_id_idx ON kavach.%1$s (agent_id, kind, request_id)"
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

static void
make_partition(TimestampTz ts)
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
	attached = true;
}

/*
 * In the worker: makes a month's partition if it is missing, unless another
 * ledger is in place by now, or its lock would have to be waited for.
 */
void
partition_make_if_free(Oid ledger_id, TimestampTz ts)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	if (find_ledger() == ledger_id &&
		ConditionalLockRelationOid(ledger_id, ShareUpdateExclusiveLock) &&
		!has_partition(ledger_id, ts))
		make_partition(ts);
	PopActiveSnapshot();
}

/*
 * In the worker, when its partitions are committed: invalidates the ledger once
 * more, for sessions that missed them (see the head of this file).
 */
void
partition_announce(Oid ledger_id)
{
	if (find_ledger() == ledger_id)
		CacheInvalidateRelcacheByRelid(ledger_id);
}

/*
 * In the caller's transaction.  The lock is one that ATTACH takes anyway; here
 * it waits for a worker that a cancelled caller may have left behind.
 */
static void
make_partition_here(Oid ledger_id, TimestampTz ts)
{
	lock_relation(ledger_id, ShareUpdateExclusiveLock);
	partition_refresh(ledger_id);
	if (!has_partition(ledger_id, ts))
		make_partition(ts);
}

/* The start of the UTC month of a date. */
static TimestampTz
month_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	TimestampTz ts;

	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be NULL", name)));
	ts = PG_GETARG_DATEADT(argno) * USECS_PER_DAY;	/* wherever the session is */
	if (DATE_NOT_FINITE(PG_GETARG_DATEADT(argno)) || ts < CLOCK_START || ts >= CLOCK_END)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s is out of range", name),
				 errdetail("The ledger's months are those from 1970 to 9999.")));
	return period_start(PERIOD_MONTH, ts);
}

static void
check_months(TimestampTz first, TimestampTz last)
{
	int			count = 0;

	if (first > last)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("first must not be after last")));
	for (TimestampTz month = first; month <= last; month = period_end(PERIOD_MONTH, month))
		if (++count > MAX_MONTHS)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("too many months"),
					 errdetail("At most %d can be made at a time.", MAX_MONTHS),
					 errhint("Make them in several transactions.")));
}

/* What stands in a part of the month only is an error of ATTACH's. */
static bool
has_month(Oid ledger_id, TimestampTz month)
{
	return has_partition(ledger_id, month) && has_partition(ledger_id, period_end(PERIOD_MONTH, month) - 1);
}

/*
 * SQL: kavach_create_months(first, last)
 *
 * In the caller's transaction, which keeps others from making any; they wait
 * for nothing else.
 */
static Datum
kavach_create_months_checked(PG_FUNCTION_ARGS)
{
	TimestampTz month = month_arg(fcinfo, 0, "first");
	TimestampTz last = month_arg(fcinfo, 1, "last");
	int			made = 0;
	Oid			ledger_id;

	check_months(month, last);
	PreventCommandIfReadOnly("kavach_create_months()");
	PreventCommandIfParallelMode("kavach_create_months()");
	ledger_begin();
	ledger_id = ledger_oid();
	lock_relation(ledger_id, ShareUpdateExclusiveLock);
	partition_refresh(ledger_id);
	for (; month <= last; month = period_end(PERIOD_MONTH, month))
	{
		CHECK_FOR_INTERRUPTS();
		if (has_month(ledger_id, month))
			continue;
		make_partition(month);
		made++;
	}
	PG_RETURN_INT32(made);
}

/* Has the worker make a month's partition and the next; LOCK_PARTITION is held. */
static void
have_partitions_made(Oid ledger_id, TimestampTz ts)
{
	if (!worker_make_partitions(ledger_id, ts))
		return;
	announce_again = true;
	AcceptInvalidationMessages();
	partition_refresh(ledger_id);
}

/*
 * The partition of a month, made if it is missing.  One lock for all months, as
 * ATTACH serializes those who make one anyway; kept by who makes it himself.
 */
static PartitionRange
ensure_partition(Oid ledger_id, TimestampTz ts)
{
	PartitionRange range;

	if (find_range(ledger_id, ts, &range))
		return range;
	lock_acquire(LOCK_PARTITION, NULL);
	AcceptInvalidationMessages();
	partition_refresh(ledger_id);
	if (!has_partition(ledger_id, ts))
		have_partitions_made(ledger_id, ts);
	if (has_partition(ledger_id, ts))
		lock_release(LOCK_PARTITION, NULL);
	else
		make_partition_here(ledger_id, ts);
	if (!find_range(ledger_id, ts, &range))
		elog(ERROR, "the ledger has no partition for %s", format_utc(ts));
	return range;
}

/*
 * Has next month's partition made while this month's is in use.  Left to the
 * first call of that month where there is no worker; and where it cannot be
 * made, it is tried once a minute, not by every new session.
 */
static void
make_next_partition(Oid ledger_id, TimestampTz ts)
{
	TimestampTz next = period_end(PERIOD_MONTH, ts);
	pg_atomic_uint64 *tried = &shared->tried[SLOT];
	TimestampTz now = GetCurrentTimestamp();

	if (next >= CLOCK_END || has_partition(ledger_id, next) ||
		now < (TimestampTz) pg_atomic_read_u64(tried) + USECS_PER_MINUTE ||
		!lock_try(LOCK_PARTITION, NULL))
		return;
	pg_atomic_write_u64(tried, now);
	have_partitions_made(ledger_id, ts);
	lock_release(LOCK_PARTITION, NULL);
}

/* ---- the partition that is written to ---- */

/* An index of the partition, its predicate compiled. */
typedef struct TargetIndex
{
	Oid			relid;
	IndexInfo  *info;
} TargetIndex;

/*
 * The partition that was last written to.  It is looked at again whenever its
 * relcache entry, or the ledger's, has been invalidated.
 */
static struct
{
	bool		valid;			/* not invalidated since it was looked at */
	bool		complete;		/* all that follows was found out */
	Oid			ledger;
	Oid			relid;
	TimestampTz start;			/* the times that it takes */
	TimestampTz end;
	bool		direct;			/* rows go in without the executor's help */
	AttrNumber	attnums[NUM_LEDGER_COLUMNS];	/* of ledger_columns[] */
	MemoryContext context;		/* of all that follows */
	ExprContext *econtext;		/* for checks and predicates */
	ExprState **checks;			/* its CHECK constraints, compiled */
	int			nchecks;
	TargetIndex *indexes;
	int			nindexes;
}			target;

static void
forget_target(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == target.relid || relid == target.ledger)
		target.valid = false;
}

static bool
fires_on_insert(const TriggerDesc *triggers)
{
	return triggers != NULL &&
		(triggers->trig_insert_before_row || triggers->trig_insert_after_row ||
		 triggers->trig_insert_instead_row ||
		 triggers->trig_insert_before_statement || triggers->trig_insert_after_statement);
}

static bool
is_others_function(Oid function, void *context)
{
	return function >= FirstUnpinnedObjectId;
}

static bool
uses_others_code(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, CoerceToDomain) || check_functions_in_node(node, is_others_function, context))
		return true;
	return expression_tree_walker(node, uses_others_code, context);
}

/* An expression that is the same whoever evaluates it, and for good. */
static bool
can_be_kept(Node *expression)
{
	return !contain_mutable_functions(expression) && !uses_others_code(expression, NULL);
}

static bool
has_plain_checks(TupleConstr *constr)
{
	for (int i = 0; constr != NULL && i < constr->num_check; i++)
	{
		if (!can_be_kept(stringToNode(constr->check[i].ccbin)))
			return false;
	}
	return true;
}

/* An index whose entries are made from columns alone, and checked at once. */
static bool
is_plain_index(Oid relid)
{
	Relation	index = index_open(relid, RowExclusiveLock);
	bool		plain;

	plain = index->rd_rel->relam == BTREE_AM_OID &&
		index->rd_index->indimmediate &&
		!index->rd_index->indisexclusion &&
		RelationGetIndexExpressions(index) == NIL &&
		can_be_kept((Node *) RelationGetIndexPredicate(index));
	index_close(index, NoLock);
	return plain;
}

static bool
has_plain_indexes(Relation partition)
{
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(partition))
	{
		if (!is_plain_index(lfirst_oid(cell)))
			return false;
	}
	return true;
}

static bool
is_written(const char *column)
{
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
		if (strcmp(column, ledger_columns[i].name) == 0)
			return true;
	return false;
}

/*
 * Whether an INSERT into the ledger would give columns a value that we do not:
 * a default (of the column, its type, an identity), or what a domain makes of
 * NULL, or of a value of ours.
 */
static bool
fills_in_columns(Relation ledger)
{
	TupleDesc	desc = RelationGetDescr(ledger);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (column->attisdropped)
			continue;
		if (get_typtype(column->atttypid) == TYPTYPE_DOMAIN)
			return true;
		if (!is_written(NameStr(column->attname)) && build_column_default(ledger, column->attnum) != NULL)
			return true;
	}
	return false;
}

/*
 * Whether a row can go straight into the heap and its indexes: nothing that
 * an INSERT would do besides is there to be done, for the parent neither.
 */
static bool
takes_rows_directly(Relation partition, Relation ledger)
{
	TupleDesc	desc = RelationGetDescr(partition);

	return partition->rd_rel->relkind == RELKIND_RELATION &&
		partition->rd_rel->relispartition &&
		partition->rd_tableam == GetHeapamTableAmRoutine() &&
		!partition->rd_rel->relrowsecurity && !ledger->rd_rel->relrowsecurity &&
		!partition->rd_rel->relhasrules && !ledger->rd_rel->relhasrules &&
		!fires_on_insert(partition->trigdesc) && !fires_on_insert(ledger->trigdesc) &&
		!compat_has_generated_columns(desc) &&
		!fills_in_columns(ledger) &&
		has_plain_checks(desc->constr) &&
		has_plain_indexes(partition);
}

static void
map_columns(Relation partition)
{
	TupleDesc	desc = RelationGetDescr(partition);

	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(partition), ledger_columns[i].name);

		if (attnum == InvalidAttrNumber ||
			getBaseType(TupleDescAttr(desc, attnum - 1)->atttypid) != ledger_columns[i].type)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of the ledger is not as kavach made it", ledger_columns[i].name)));
		target.attnums[i] = attnum;
	}
}

static void
compile_checks(Relation partition)
{
	TupleConstr *constr = RelationGetDescr(partition)->constr;

	target.nchecks = 0;
	target.checks = palloc(sizeof(ExprState *) * (constr ? constr->num_check + 1 : 1));
	for (int i = 0; constr != NULL && i < constr->num_check; i++)
	{
		Expr	   *check = stringToNode(constr->check[i].ccbin);

		if (compat_is_enforced(&constr->check[i]))
			target.checks[target.nchecks++] = ExecInitExpr(expression_planner(check), NULL);
	}
}

static void
compile_indexes(Relation partition)
{
	List	   *relids = RelationGetIndexList(partition);
	ListCell   *cell;

	target.nindexes = 0;
	target.indexes = palloc(sizeof(TargetIndex) * Max(list_length(relids), 1));
	foreach(cell, relids)
	{
		TargetIndex *index = &target.indexes[target.nindexes++];
		Relation	relation = index_open(lfirst_oid(cell), RowExclusiveLock);

		index->relid = lfirst_oid(cell);
		index->info = BuildIndexInfo(relation);
		if (index->info->ii_Predicate != NIL)
			index->info->ii_PredicateState =
				ExecInitQual((List *) expression_planner((Expr *) index->info->ii_Predicate), NULL);
		index_close(relation, NoLock);
	}
}

/*
 * The executor compiles constraints and predicates anew for every statement,
 * which is a good part of what an INSERT costs.
 */
static void
compile_target(Relation partition)
{
	MemoryContext old;

	if (target.context == NULL)
		target.context = AllocSetContextCreate(TopMemoryContext, "kavach partition", ALLOCSET_SMALL_SIZES);
	if (target.econtext != NULL)
		FreeExprContext(target.econtext, true);
	target.econtext = NULL;
	MemoryContextReset(target.context);
	old = MemoryContextSwitchTo(target.context);
	target.econtext = CreateStandaloneExprContext();
	compile_checks(partition);
	compile_indexes(partition);
	MemoryContextSwitchTo(old);
}

/* Whether the row fulfils all constraints. */
static bool
fulfils_constraints(TupleTableSlot *slot)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;

	for (int i = 0; i < desc->natts; i++)
		if (TupleDescAttr(desc, i)->attnotnull && slot->tts_isnull[i])
			return false;
	for (int i = 0; i < target.nchecks; i++)
		if (!ExecCheck(target.checks[i], target.econtext))
			return false;
	return true;
}

/*
 * Says which constraint it is that a row does not fulfil; and the row only to
 * those who may read it, as there is no range table to say what a caller has
 * given himself (so that its index is 0).
 */
static void
report_constraint(Relation partition, TupleTableSlot *slot)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *result = makeNode(ResultRelInfo);

	InitResultRelInfo(result, partition, 0, NULL, 0);
	ExecConstraints(result, slot, estate);
	FreeExecutorState(estate);
}

/* Makes target the partition for ts, locked. */
static void
find_target(Oid ledger_id, TimestampTz ts)
{
	static bool registered = false;
	PartitionRange range;
	Relation	ledger;
	Relation	partition;

	/* the lock lets invalidations in, so that what is valid then stays so */
	if (target.valid && target.complete &&
		target.ledger == ledger_id && ts >= target.start && ts < target.end)
	{
		lock_relation(target.relid, RowExclusiveLock);
		if (target.valid)
			return;
	}
	if (!registered)
	{
		CacheRegisterRelcacheCallback(forget_target, (Datum) 0);
		registered = true;
	}

	range = ensure_partition(ledger_id, ts);
	make_next_partition(ledger_id, ts);
	ledger = table_open(ledger_id, RowExclusiveLock);
	lock_relation(range.relid, RowExclusiveLock);
	partition = table_open(range.relid, NoLock);
	target.complete = false;	/* what follows may fail half-way */
	target.valid = true;
	target.ledger = ledger_id;
	target.relid = range.relid;
	target.start = range.start;
	target.end = range.end;
	target.direct = takes_rows_directly(partition, ledger);
	map_columns(partition);
	if (target.direct)
		compile_target(partition);
	target.complete = true;
	table_close(partition, NoLock);
	table_close(ledger, NoLock);
}

/* ---- the way straight in ---- */

static TupleTableSlot *
make_slot(Relation partition, const RowValues *row)
{
	TupleTableSlot *slot = table_slot_create(partition, NULL);

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		slot->tts_values[target.attnums[i] - 1] = row->values[i];
		slot->tts_isnull[target.attnums[i] - 1] = row->isnull[i];
	}
	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = target.relid;
	return slot;
}

/* As ExecInsertIndexTuples does, for indexes that are plain. */
static void
insert_index_entries(Relation partition, TupleTableSlot *slot)
{
	for (int i = 0; i < target.nindexes; i++)
	{
		IndexInfo  *info = target.indexes[i].info;
		Relation	index;
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		if (info->ii_PredicateState != NULL && !ExecQual(info->ii_PredicateState, target.econtext))
			continue;
		index = index_open(target.indexes[i].relid, RowExclusiveLock);
		/* one that is being built concurrently is not ready at first */
		if (index->rd_index->indisready)
		{
			FormIndexDatum(info, slot, NULL, values, isnull);
			index_insert(index, values, isnull, &slot->tts_tid, partition,
						 index->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
						 false, info);
		}
		index_close(index, NoLock);
	}
}

static void
insert_directly(const RowValues *row)
{
	Relation	partition = table_open(target.relid, NoLock);
	TupleTableSlot *slot = make_slot(partition, row);

	ResetExprContext(target.econtext);
	target.econtext->ecxt_scantuple = slot;
	if (!fulfils_constraints(slot))
		report_constraint(partition, slot);
	table_tuple_insert(partition, slot, GetCurrentCommandId(true), 0, NULL);
	insert_index_entries(partition, slot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(partition, NoLock);
}

/*
 * Writes a row into the partition of its month, which is made if it is missing.
 * Returns false where only an INSERT can do that; the partition is there then.
 */
bool
partition_insert(Oid ledger, TimestampTz ts, const RowValues *row)
{
	find_target(ledger, ts);
	if (announce_again)
	{
		/* to sessions that read the ledger without calling us, and missed it */
		CacheInvalidateRelcacheByRelid(ledger);
		announcing = true;
	}
	if (target.direct)
		insert_directly(row);
	return target.direct;
}
