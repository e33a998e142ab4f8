/*-------------------------------------------------------------------------
 * insert.c
 *		The way of a row straight into the partition of its month.
 *
 * A row goes into the heap and its indexes as an INSERT would put it there,
 * with its constraints checked, as far as it could fail them, but what the
 * executor prepares anew for every statement is prepared once for a partition,
 * and again after an invalidation of it.  So only where nothing else is to be
 * done: a plain heap with plain B-tree indexes, without triggers on INSERT, row
 * security, rules, generated columns, or columns of others that get a value of
 * their own; and only with constraints and predicates made of the server's own
 * immutable functions.  A function of somebody else's may be replaced, which
 * invalidates no relation, and would run with the caller's rights and settings
 * instead of the owner's.
 *-------------------------------------------------------------------------
 */
#include "ledger/insert.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "ledger/announce.h"
#include "ledger/months.h"
#include "ledger/partition.h"
#include "ledger/row.h"
#include "server/compat.h"
#include "server/lock.h"

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
	TupleTableSlot *slot;		/* for a row, by value: it keeps nothing */
	ExprContext *econtext;		/* for checks and predicates, of that */
	AttrNumber *required;		/* columns that are NOT NULL */
	int			nrequired;
	ExprState **checks;			/* CHECKs that a row may fail, compiled */
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

/* The column of that name that we write; NULL where there is none. */
static const LedgerColumn *
written_column(const char *name)
{
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
		if (strcmp(name, ledger_columns[i].name) == 0)
			return &ledger_columns[i];
	return NULL;
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
		const LedgerColumn *written = written_column(NameStr(column->attname));

		if (column->attisdropped || (written != NULL && written->type == column->atttypid))
			continue;
		if (get_typtype(column->atttypid) == TYPTYPE_DOMAIN)
			return true;
		if (written == NULL && build_column_default(ledger, column->attnum) != NULL)
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
	const char *other = row_map_columns(partition, target.attnums);

	if (other != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of the ledger is not as kavach made it", other)));
}

static void
note_required(TupleDesc desc)
{
	target.nrequired = 0;
	target.required = palloc(sizeof(AttrNumber) * desc->natts);
	for (int i = 0; i < desc->natts; i++)
		if (TupleDescAttr(desc, i)->attnotnull)
			target.required[target.nrequired++] = i + 1;
}

/* That a column has one of some words. */
static Node *
one_of(Relation partition, LedgerColumnNumber column, const char *const *words, int nwords)
{
	AttrNumber	attnum = target.attnums[column];
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(partition), attnum - 1);
	Datum	   *values = palloc(sizeof(Datum) * nwords);
	ScalarArrayOpExpr *clause = makeNode(ScalarArrayOpExpr);

	for (int i = 0; i < nwords; i++)
		values[i] = CStringGetTextDatum(words[i]);
	clause->opno = TextEqualOperator;
	clause->opfuncid = F_TEXTEQ;
	clause->useOr = true;
	clause->inputcollid = attribute->attcollation;
	clause->args = list_make2(makeVar(1, attnum, attribute->atttypid, attribute->atttypmod, attribute->attcollation, 0),
							  makeConst(TEXTARRAYOID, -1, attribute->attcollation, -1,
										PointerGetDatum(construct_array(values, nwords, TEXTOID, -1, false, TYPALIGN_INT)),
										false, false));
	clause->location = -1;
	return (Node *) clause;
}

/* Whether a check holds for all rows of ours, as those that kavach has made do. */
static bool
holds_anyway(Relation partition, Expr *check)
{
	List	   *known = list_make2(one_of(partition, COLUMN_kind, ledger_kinds, NUM_LEDGER_KINDS),
								   one_of(partition, COLUMN_result, result_names, NUM_RESULTS));

	return predicate_implied_by(list_make1(check), known, false);
}

static void
compile_checks(Relation partition)
{
	TupleConstr *constr = RelationGetDescr(partition)->constr;

	target.nchecks = 0;
	target.checks = palloc(sizeof(ExprState *) * (constr ? constr->num_check + 1 : 1));
	for (int i = 0; constr != NULL && i < constr->num_check; i++)
	{
		Expr	   *check = expression_planner(stringToNode(constr->check[i].ccbin));

		if (compat_is_enforced(&constr->check[i]) && !holds_anyway(partition, check))
			target.checks[target.nchecks++] = ExecInitExpr(check, NULL);
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
	target.slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(partition)), &TTSOpsVirtual);
	target.slot->tts_tableOid = target.relid;
	target.econtext = CreateStandaloneExprContext();
	target.econtext->ecxt_scantuple = target.slot;
	note_required(RelationGetDescr(partition));
	compile_checks(partition);
	compile_indexes(partition);
	MemoryContextSwitchTo(old);
}

/* Whether the row fulfils all constraints. */
static bool
fulfils_constraints(void)
{
	for (int i = 0; i < target.nrequired; i++)
		if (target.slot->tts_isnull[target.required[i] - 1])
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
report_constraint(Relation partition)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *result = makeNode(ResultRelInfo);

	InitResultRelInfo(result, partition, 0, NULL, 0);
	ExecConstraints(result, target.slot, estate);
	FreeExecutorState(estate);
}

/* Whether this is the partition that was last written to, and most likely is next. */
bool
insert_is_into(Oid relid)
{
	return target.valid && target.relid == relid;
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

	range = months_ensure(ledger_id, ts);
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

static void
fill_slot(const RowValues *row)
{
	TupleTableSlot *slot = target.slot;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		slot->tts_values[target.attnums[i] - 1] = row->values[i];
		slot->tts_isnull[target.attnums[i] - 1] = row->isnull[i];
	}
	ExecStoreVirtualTuple(slot);
}

/* As ExecInsertIndexTuples does, for indexes that are plain. */
static void
insert_index_entries(Relation partition, ItemPointer tid)
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
			FormIndexDatum(info, target.slot, NULL, values, isnull);
			index_insert(index, values, isnull, tid, partition,
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
	TupleTableSlot *slot = target.slot;
	HeapTuple	tuple;

	fill_slot(row);
	ResetExprContext(target.econtext);
	if (!fulfils_constraints())
		report_constraint(partition);
	/* as table_tuple_insert does, but for a copy that it has the slot make */
	tuple = heap_form_tuple(slot->tts_tupleDescriptor, slot->tts_values, slot->tts_isnull);
	tuple->t_tableOid = target.relid;
	heap_insert(partition, tuple, GetCurrentCommandId(true), 0, NULL);
	insert_index_entries(partition, &tuple->t_self);
	heap_freetuple(tuple);
	table_close(partition, NoLock);
}

/*
 * Writes a row into the partition of its month, which is made if it is missing.
 * Returns false where only an INSERT can do that; the partition is there then.
 */
bool
insert_row(Oid ledger, TimestampTz ts, const RowValues *row)
{
	find_target(ledger, ts);
	announce_with_commit(ledger);
	if (target.direct)
		insert_directly(row);
	return target.direct;
}
