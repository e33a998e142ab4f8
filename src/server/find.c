/*-------------------------------------------------------------------------
 * find.c
 *		Rows of kavach's own tables, straight by their indexes.
 *
 * They are found as SELECTs of the ledger's owner would find them, in one
 * snapshot, the latest as of find_begin, with what the transaction has written
 * itself, and under SERIALIZABLE with the same predicate locks.  But a SELECT has
 * to be planned once in each session, which takes longer than a hundred calls.
 *
 * So only where the executor has nothing else to do: a plain heap of the same
 * owner, without row security and tables that inherit from it, whose columns
 * are as kavach made them, with a B-tree index that a planner could use.  What it
 * compares with is the server's own, so that nobody's code runs.  Otherwise the
 * rows are found by statements, in the same snapshot.
 *
 * Table and index are locked while they are read, as catalogs are, and no longer:
 * a call that finds in the cache what it looks for locks none either.  What is known
 * of a table is kept until it is invalidated; its lock lets invalidations in, and
 * keeps its indexes there.
 *-------------------------------------------------------------------------
 */
#include "server/find.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "server/argument.h"
#include "server/compat.h"
#include "server/index.h"

static Finder *finders = NULL;

/* ---- which table it is ---- */

static void
forget_names(Datum arg, int cacheid, uint32 hashvalue)
{
	for (Finder *finder = finders; finder != NULL; finder = finder->next)
		finder->relid = InvalidOid;
}

static void
forget_tables(Datum arg, Oid relid)
{
	for (Finder *finder = finders; finder != NULL; finder = finder->next)
		if (relid == InvalidOid || relid == finder->known)
			finder->known = InvalidOid;
}

static void
register_finder(Finder *finder)
{
	if (finders == NULL)
	{
		CacheRegisterSyscacheCallback(RELOID, forget_names, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_names, (Datum) 0);
		CacheRegisterRelcacheCallback(forget_tables, (Datum) 0);
	}
	finder->next = finders;
	finders = finder;
	finder->registered = true;
}

static Oid
table_oid(Finder *finder)
{
	if (!OidIsValid(finder->relid))
	{
		Oid			schema = get_namespace_oid("kavach", true);

		if (OidIsValid(schema))
			finder->relid = get_relname_relid(strchr(finder->table, '.') + 1, schema);
	}
	return finder->relid;
}

/* Opens the table, locked; NULL where there is none. */
static Relation
open_table(Finder *finder)
{
	for (;;)
	{
		Oid			relid = table_oid(finder);

		if (!OidIsValid(relid))
			return NULL;
		LockRelationOid(relid, AccessShareLock);
		if (relid == table_oid(finder))
			return table_open(relid, NoLock);
		/* dropped, and made anew */
		UnlockRelationOid(relid, AccessShareLock);
	}
}

/* ---- what is known of it ---- */

/* Where a column is, if it is as kavach made it; or else 0. */
static AttrNumber
find_column(TupleDesc desc, const FindColumn *column)
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

/* Whether all columns are as kavach made them; and where they are. */
static bool
map_columns(Relation table, Finder *finder)
{
	for (int i = 0; i < finder->ncolumns; i++)
	{
		finder->attnums[i] = find_column(RelationGetDescr(table), &finder->columns[i]);
		if (finder->attnums[i] == InvalidAttrNumber)
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

/* Whether an index begins with the keys, as its row in pg_index says. */
static bool
begins_with_keys(const Finder *finder, Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;
	bool		begins;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_index) GETSTRUCT(tuple);
	begins = form->indisvalid && form->indnkeyatts >= finder->nkeys;
	for (int i = 0; i < finder->nkeys && begins; i++)
		begins = form->indkey.values[i] == finder->attnums[i];
	ReleaseSysCache(tuple);
	return begins;
}

/* Whether all rows are in it, and can be looked up by the keys. */
static bool
finds_rows(const Finder *finder, Relation table, Oid relid)
{
	Relation	index = index_open(relid, AccessShareLock);
	bool		finds = index->rd_rel->relam == BTREE_AM_OID && RelationGetIndexPredicate(index) == NIL;

	for (int i = 0; i < finder->nkeys && finds; i++)
		finds = index_has_usual_order(table, index, i, TEXTOID);
	index_close(index, AccessShareLock);
	return finds;
}

/* Opening an index takes long, once in a session: those that will not do stay closed. */
static Oid
find_index(const Finder *finder, Relation table)
{
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(table))
	{
		Oid			index = lfirst_oid(cell);

		if (begins_with_keys(finder, index) && finds_rows(finder, table, index))
			return index;
	}
	return InvalidOid;
}

/* Makes known what there is to know of the table, which is locked. */
static void
know_table(Relation table, Finder *finder)
{
	if (finder->known == RelationGetRelid(table))
		return;
	/* first, as it may be invalidated meanwhile */
	finder->known = RelationGetRelid(table);
	finder->index = InvalidOid;
	if (is_plain(table) && map_columns(table, finder))
		finder->index = find_index(finder, table);
}

/* ---- straight ---- */

/* Of a type with a length word, or one that is passed by value. */
static Datum
copy_value(Datum value, const FindColumn *column)
{
	return get_typlen(column->type) == -1 ? PointerGetDatum(PG_DETOAST_DATUM_COPY(value)) : value;
}

static FoundRow *
read_row(const Finder *finder, TupleTableSlot *slot, int search)
{
	FoundRow   *row = palloc(sizeof(FoundRow));

	row->search = search;
	for (int i = 0; i < finder->ncolumns; i++)
	{
		row->values[i] = slot_getattr(slot, finder->attnums[i], &row->isnull[i]);
		if (!row->isnull[i])
			row->values[i] = copy_value(row->values[i], &finder->columns[i]);
	}
	return row;
}

static void
make_scan_keys(const Finder *finder, Relation index, const FindKeys *keys, ScanKey scan_keys)
{
	for (int i = 0; i < finder->nkeys; i++)
	{
		if (keys->values[i] == NULL)
			ScanKeyEntryInitialize(&scan_keys[i], SK_ISNULL | SK_SEARCHNULL, i + 1, InvalidStrategy,
								   InvalidOid, InvalidOid, InvalidOid, (Datum) 0);
		else
			ScanKeyEntryInitialize(&scan_keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
								   index->rd_indcollation[i], F_TEXTEQ,
								   CStringGetTextDatum(keys->values[i]));
	}
}

static List *
search_index(const Finder *finder, Relation table, Relation index, const FindKeys *searches, int nsearches)
{
	TupleTableSlot *slot = table_slot_create(table, NULL);
	ScanKeyData scan_keys[MAX_FIND_KEYS];
	IndexScanDesc scan = compat_index_beginscan(table, index, GetActiveSnapshot(), finder->nkeys);
	List	   *rows = NIL;

	for (int i = 0; i < nsearches; i++)
	{
		make_scan_keys(finder, index, &searches[i], scan_keys);
		index_rescan(scan, scan_keys, finder->nkeys, NULL, 0);
		while (index_getnext_slot(scan, ForwardScanDirection, slot))
			rows = lappend(rows, read_row(finder, slot, i));
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return rows;
}

/* Returns false where only a statement can. */
static bool
search_table(Finder *finder, Relation table, const FindKeys *searches, int nsearches, List **rows)
{
	Relation	index;
	bool		usable;

	know_table(table, finder);
	if (!OidIsValid(finder->index))
		return false;
	index = index_open(finder->index, AccessShareLock);
	usable = index_is_usable(index);
	if (usable)
		*rows = search_index(finder, table, index, searches, nsearches);
	index_close(index, AccessShareLock);
	return usable;
}

/* ---- by statement ---- */

static void
complete_statement(const Finder *finder, Statement *statement, bool last_is_null)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < finder->ncolumns; i++)
		appendStringInfo(&sql, "%s %s::%s", i == 0 ? "SELECT" : ",",
						 finder->columns[i].name, format_type_be(finder->columns[i].type));
	appendStringInfo(&sql, " FROM %s", finder->table);
	for (int i = 0; i < finder->nkeys; i++)
	{
		appendStringInfo(&sql, " %s %s", i == 0 ? "WHERE" : "AND", finder->columns[i].name);
		if (last_is_null && i == finder->nkeys - 1)
			appendStringInfoString(&sql, " IS NULL");
		else
		{
			appendStringInfo(&sql, " = $%d", i + 1);
			statement->argtypes[statement->nargs++] = TEXTOID;
		}
	}
	statement->sql = MemoryContextStrdup(TopMemoryContext, sql.data);
}

static List *
select_rows(Finder *finder, const FindKeys *keys, int search, List *rows)
{
	bool		last_is_null = keys->values[finder->nkeys - 1] == NULL;
	Statement  *statement = &finder->statements[last_is_null];
	Datum		values[MAX_FIND_KEYS];
	uint64		nrows;

	if (statement->sql == NULL)
		complete_statement(finder, statement, last_is_null);
	for (int i = 0; i < statement->nargs; i++)
		values[i] = CStringGetTextDatum(keys->values[i]);
	nrows = query_select_in(GetActiveSnapshot(), statement, values, NULL);
	for (uint64 i = 0; i < nrows; i++)
	{
		FoundRow   *row = palloc(sizeof(FoundRow));

		row->search = search;
		for (int column = 0; column < finder->ncolumns; column++)
			row->values[column] = query_datum(i, column + 1, &row->isnull[column]);
		rows = lappend(rows, row);
	}
	return rows;
}

static List *
search_by_statements(Finder *finder, const FindKeys *searches, int nsearches)
{
	OwnerRights owner;
	List	   *rows = NIL;

	query_begin(&owner);
	query_avoid_scans();
	for (int i = 0; i < nsearches; i++)
		rows = select_rows(finder, &searches[i], i, rows);
	query_end(&owner);
	return rows;
}

/* ---- what others call ---- */

/* What is found from here to find_end is of one moment: now. */
void
find_begin(void)
{
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
}

void
find_end(void)
{
	PopActiveSnapshot();
}

/* All rows that the searches find (FoundRow), search by search. */
List *
find_rows(Finder *finder, const FindKeys *searches, int nsearches)
{
	Relation	table;
	List	   *rows = NIL;
	bool		searched = false;

	if (!finder->registered)
		register_finder(finder);
	table = open_table(finder);
	if (table != NULL)
	{
		searched = search_table(finder, table, searches, nsearches, &rows);
		table_close(table, AccessShareLock);
	}
	return searched ? rows : search_by_statements(finder, searches, nsearches);
}

/* A text that was found, or NULL. */
char *
found_text(const FoundRow *row, int column)
{
	return row->isnull[column] ? NULL : TextDatumGetCString(row->values[column]);
}
