/*-------------------------------------------------------------------------
 * straight.c
 *		Tables of kavach's own, opened for scans of an index.
 *
 * What a scan finds is what a SELECT of the ledger's owner would find, in the
 * same snapshot and, under SERIALIZABLE, with the same predicate locks; but
 * without a plan, which costs more than the rows do.  So only where the executor
 * has nothing else to do: a plain heap of the same owner, without row security
 * and tables that inherit from it, whose columns are as kavach made them, with a
 * B-tree index that a planner could use.
 *
 * Table and index are locked while they are open, as catalogs are, and no
 * longer.  What is known of a table is kept until it is invalidated; its lock
 * lets invalidations in, and keeps its indexes there.
 *-------------------------------------------------------------------------
 */
#include "server/straight.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "server/index.h"
#include "server/query.h"

static StraightTable *tables = NULL;

/* ---- which table it is ---- */

static void
forget_names(Datum arg, int cacheid, uint32 hashvalue)
{
	for (StraightTable *table = tables; table != NULL; table = table->next)
		table->relid = InvalidOid;
}

static void
forget_tables(Datum arg, Oid relid)
{
	for (StraightTable *table = tables; table != NULL; table = table->next)
		if (relid == InvalidOid || relid == table->known)
			table->known = InvalidOid;
}

static void
register_table(StraightTable *straight)
{
	if (tables == NULL)
	{
		CacheRegisterSyscacheCallback(RELOID, forget_names, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_names, (Datum) 0);
		CacheRegisterRelcacheCallback(forget_tables, (Datum) 0);
	}
	straight->next = tables;
	tables = straight;
	straight->registered = true;
}

static Oid
table_oid(StraightTable *straight)
{
	if (!OidIsValid(straight->relid))
	{
		Oid			schema = get_namespace_oid("kavach", true);

		if (OidIsValid(schema))
			straight->relid = get_relname_relid(strchr(straight->name, '.') + 1, schema);
	}
	return straight->relid;
}

/* Opens the table, locked; NULL where there is none. */
static Relation
open_table(StraightTable *straight)
{
	for (;;)
	{
		Oid			relid = table_oid(straight);

		if (!OidIsValid(relid))
			return NULL;
		LockRelationOid(relid, AccessShareLock);
		if (relid == table_oid(straight))
			return table_open(relid, NoLock);
		/* dropped, and made anew */
		UnlockRelationOid(relid, AccessShareLock);
	}
}

/* ---- what is known of it ---- */

/* Where a column is, if it is as kavach made it; or else 0. */
static AttrNumber
find_column(TupleDesc desc, const StraightColumn *column)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (attribute->atttypid == column->type && attribute->attgenerated == '\0' &&
			strcmp(NameStr(attribute->attname), column->name) == 0)
			return attribute->attnum;
	}
	return InvalidAttrNumber;
}

static bool
map_columns(StraightTable *straight)
{
	for (int i = 0; i < straight->ncolumns; i++)
	{
		straight->attnums[i] = find_column(RelationGetDescr(straight->table), &straight->columns[i]);
		if (straight->attnums[i] == InvalidAttrNumber)
			return false;
	}
	return true;
}

/* Whether a SELECT would do nothing but read it. */
static bool
is_plain(Relation table)
{
	return index_is_over_heap(table) &&
		!table->rd_rel->relrowsecurity &&
		!table->rd_rel->relhassubclass &&
		table->rd_rel->relowner == query_owner();
}

/* Whether an index begins with the keys, in their order, as its row in pg_index says. */
static bool
begins_with_keys(const StraightTable *straight, Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;
	bool		begins;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_index) GETSTRUCT(tuple);
	begins = form->indisvalid && form->indnkeyatts >= straight->nkeys;
	for (int i = 0; i < straight->nkeys && begins; i++)
		begins = form->indkey.values[i] == straight->attnums[i];
	ReleaseSysCache(tuple);
	return begins;
}

/* Whether all rows are in it, in the usual order. */
static bool
has_all_rows(const StraightTable *straight, Oid relid)
{
	Relation	index = index_open(relid, AccessShareLock);
	bool		has_all = index->rd_rel->relam == BTREE_AM_OID && RelationGetIndexPredicate(index) == NIL;

	for (int i = 0; i < straight->nkeys && has_all; i++)
		has_all = index->rd_indoption[i] == 0 &&
			index_has_usual_order(straight->table, index, i, straight->columns[i].type);
	index_close(index, AccessShareLock);
	return has_all;
}

/* Opening an index takes long, once in a session: those that will not do stay closed. */
static Oid
find_index(const StraightTable *straight)
{
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(straight->table))
	{
		Oid			index = lfirst_oid(cell);

		if (begins_with_keys(straight, index) && has_all_rows(straight, index))
			return index;
	}
	return InvalidOid;
}

/* Makes known what there is to know of the table, which is locked. */
static void
know_table(StraightTable *straight)
{
	if (straight->known == RelationGetRelid(straight->table))
		return;
	/* it may be invalidated from here on */
	straight->known = RelationGetRelid(straight->table);
	straight->index_id = InvalidOid;
	if (is_plain(straight->table) && map_columns(straight))
		straight->index_id = find_index(straight);
}

/* ---- what others call ---- */

/* Opens it with its index.  Returns false where only a statement can read it. */
bool
straight_open(StraightTable *straight)
{
	if (!straight->registered)
		register_table(straight);
	straight->index = NULL;
	straight->table = open_table(straight);
	if (straight->table == NULL)
		return false;
	know_table(straight);
	if (OidIsValid(straight->index_id))
	{
		straight->index = index_open(straight->index_id, AccessShareLock);
		if (index_is_usable(straight->index))
			return true;
	}
	straight_close(straight);
	return false;
}

void
straight_close(StraightTable *straight)
{
	if (straight->index != NULL)
		index_close(straight->index, AccessShareLock);
	table_close(straight->table, AccessShareLock);
	straight->table = NULL;
	straight->index = NULL;
}
