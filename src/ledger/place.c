/*-------------------------------------------------------------------------
 * place.c
 *		What is known of a partition: where its columns are, and its indexes.
 *
 * For who goes straight to rows (lookup.c, scan.c): the B-tree indexes of a plain
 * heap that a planner could use for what is looked for.  A unique one may have a
 * predicate, if all rows that are looked for fulfil it.
 *
 * It is kept until it is invalidated.  Who asks has locked the partition, which
 * lets invalidations in.
 *-------------------------------------------------------------------------
 */
#include "ledger/place.h"

#include "access/genam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "server/index.h"

const IndexFormInfo index_forms[NUM_INDEX_FORMS] = {
	[FORM_ID] = {true, false, 1, {COLUMN_id}},
	[FORM_SETTLES] = {true, false, 1, {COLUMN_settles}},
	[FORM_REQUEST] = {true, true, 3, {COLUMN_request_id, COLUMN_agent_id, COLUMN_kind}},
	[FORM_OLD_REQUEST] = {true, true, 3, {COLUMN_agent_id, COLUMN_kind, COLUMN_request_id}},
	[FORM_BATCH] = {false, false, 1, {COLUMN_batch}},
	[FORM_AGENT] = {false, false, 2, {COLUMN_agent_id, COLUMN_ts}},
};

static HTAB *places = NULL;
static uint64 invalidations = 0;

/* ---- until when it is known ---- */

static void
forget_places(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	Place	   *place;

	invalidations++;
	if (OidIsValid(relid))
	{
		place = hash_search(places, &relid, HASH_FIND, NULL);
		if (place != NULL)
			place->valid = false;
		return;
	}
	hash_seq_init(&scan, places);
	while ((place = hash_seq_search(&scan)) != NULL)
		place->valid = false;
}

static void
make_places(void)
{
	HASHCTL		info = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(Place),
		.hcxt = TopMemoryContext,
	};

	places = hash_create("kavach partitions", 16, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(forget_places, (Datum) 0);
}

/* How many invalidations there have been; as long as it is the same number, so is what is known. */
uint64
place_invalidations(void)
{
	if (places == NULL)
		make_places();
	return invalidations;
}

/* ---- the indexes ---- */

/* A column of a partition, as in the predicate of an index. */
static Expr *
column_var(Relation partition, AttrNumber attnum)
{
	Form_pg_attribute column = TupleDescAttr(RelationGetDescr(partition), attnum - 1);

	return (Expr *) makeVar(1, attnum, column->atttypid, column->atttypmod, column->attcollation, 0);
}

/* What is known of the rows that are looked up in an index. */
static List *
known_of_rows(Relation partition, const IndexFormInfo *form, const AttrNumber *attnums)
{
	List	   *known = NIL;

	for (int i = 0; i < form->ncolumns; i++)
	{
		NullTest   *test = makeNode(NullTest);

		test->arg = column_var(partition, attnums[form->columns[i]]);
		test->nulltesttype = IS_NOT_NULL;
		test->location = -1;
		known = lappend(known, test);
	}
	if (form->of_admitted)
	{
		Var		   *result = (Var *) column_var(partition, attnums[COLUMN_result]);
		Const	   *allowed = makeConst(TEXTOID, -1, DEFAULT_COLLATION_OID, -1,
										CStringGetTextDatum("allowed"), false, false);

		known = lappend(known, make_opclause(TextEqualOperator, BOOLOID, false,
											 (Expr *) result, (Expr *) allowed,
											 InvalidOid, result->varcollid));
	}
	return known;
}

/* Whether an index has the columns of a form, in the usual order. */
static bool
has_columns(Relation partition, Relation index, const IndexFormInfo *form, const AttrNumber *attnums)
{
	for (int i = 0; i < form->ncolumns; i++)
	{
		LedgerColumnNumber column = form->columns[i];

		if (index->rd_index->indkey.values[i] != attnums[column] ||
			!index_has_usual_order(partition, index, i, ledger_columns[column].type))
			return false;
	}
	return true;
}

/* Whether rows can be found in an index as in one of a form. */
static bool
has_form(Relation partition, Relation index, const IndexFormInfo *form, const AttrNumber *attnums)
{
	if (index->rd_rel->relam != BTREE_AM_OID ||
		!index->rd_index->indisvalid ||
		index->rd_index->indnkeyatts < form->ncolumns)
		return false;
	if (!form->is_unique)
		return RelationGetIndexPredicate(index) == NIL && has_columns(partition, index, form, attnums);
	return index->rd_index->indisunique &&
		index->rd_index->indimmediate &&
		index->rd_index->indnkeyatts == form->ncolumns &&
		has_columns(partition, index, form, attnums) &&
		predicate_implied_by(RelationGetIndexPredicate(index), known_of_rows(partition, form, attnums), false);
}

static void
look_at_partition(Relation partition, Place *place)
{
	List	   *indexes = RelationGetIndexList(partition);
	ListCell   *cell;

	place->bare = partition->rd_rel->relkind == RELKIND_RELATION && indexes == NIL;
	memset(place->indexes, 0, sizeof(place->indexes));
	if (!index_is_over_heap(partition) || row_map_columns(partition, place->attnums) != NULL)
		return;
	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		for (IndexForm form = 0; form < NUM_INDEX_FORMS; form++)
			if (has_form(partition, index, &index_forms[form], place->attnums))
				place->indexes[form] = lfirst_oid(cell);
		index_close(index, AccessShareLock);
	}
}

/* What is known of a partition, which is locked. */
Place *
place_of(Relation partition)
{
	Oid			relid = RelationGetRelid(partition);
	uint64		before = place_invalidations();
	bool		found;
	Place	   *place = hash_search(places, &relid, HASH_ENTER, &found);

	if (!found)
		place->valid = false;
	if (!place->valid)
	{
		look_at_partition(partition, place);
		place->valid = before == invalidations;
	}
	return place;
}
