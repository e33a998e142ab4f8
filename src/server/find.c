/*-------------------------------------------------------------------------
 * find.c
 *		Rows of kavach's own tables, straight by their indexes.
 *
 * They are found as SELECTs of the ledger's owner would find them, in one
 * snapshot, the latest as of find_begin, with what the transaction has written
 * itself, and under SERIALIZABLE with the same predicate locks.  But a SELECT has
 * to be planned once in each session, which takes longer than a hundred calls.
 *
 * So straight by an index, where straight.c can open one; what it compares with is
 * the server's own, so that nobody's code runs.  Otherwise the rows are found by
 * statements, in the same snapshot.
 *
 * Table and index are locked while they are read, as catalogs are, and no longer:
 * a call that finds in the cache what it looks for locks none either.
 *-------------------------------------------------------------------------
 */
#include "server/find.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "server/argument.h"
#include "server/compat.h"

/* ---- straight ---- */

/* Of a type with a length word, or one that is passed by value. */
static Datum
copy_value(Datum value, const StraightColumn *column)
{
	return get_typlen(column->type) == -1 ? PointerGetDatum(PG_DETOAST_DATUM_COPY(value)) : value;
}

static FoundRow *
read_row(const Finder *finder, TupleTableSlot *slot, int search)
{
	FoundRow   *row = palloc(sizeof(FoundRow));

	row->search = search;
	for (int i = 0; i < finder->table.ncolumns; i++)
	{
		row->values[i] = slot_getattr(slot, finder->table.attnums[i], &row->isnull[i]);
		if (!row->isnull[i])
			row->values[i] = copy_value(row->values[i], &finder->table.columns[i]);
	}
	return row;
}

static void
make_scan_keys(const Finder *finder, Relation index, const FindKeys *keys, ScanKey scan_keys)
{
	for (int i = 0; i < finder->table.nkeys; i++)
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
search_index(const Finder *finder, const FindKeys *searches, int nsearches)
{
	const StraightTable *table = &finder->table;
	TupleTableSlot *slot = table_slot_create(table->table, NULL);
	ScanKeyData scan_keys[MAX_FIND_KEYS];
	IndexScanDesc scan = compat_index_beginscan(table->table, table->index, GetActiveSnapshot(), table->nkeys);
	List	   *rows = NIL;

	for (int i = 0; i < nsearches; i++)
	{
		make_scan_keys(finder, table->index, &searches[i], scan_keys);
		index_rescan(scan, scan_keys, table->nkeys, NULL, 0);
		while (index_getnext_slot(scan, ForwardScanDirection, slot))
			rows = lappend(rows, read_row(finder, slot, i));
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return rows;
}

/* ---- by statement ---- */

static void
complete_statement(const Finder *finder, Statement *statement, bool last_is_null)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < finder->table.ncolumns; i++)
		appendStringInfo(&sql, "%s %s::%s", i == 0 ? "SELECT" : ",",
						 finder->table.columns[i].name, format_type_be(finder->table.columns[i].type));
	appendStringInfo(&sql, " FROM %s", finder->table.name);
	for (int i = 0; i < finder->table.nkeys; i++)
	{
		appendStringInfo(&sql, " %s %s", i == 0 ? "WHERE" : "AND", finder->table.columns[i].name);
		if (last_is_null && i == finder->table.nkeys - 1)
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
	bool		last_is_null = keys->values[finder->table.nkeys - 1] == NULL;
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
		for (int column = 0; column < finder->table.ncolumns; column++)
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
	List	   *rows;

	if (!straight_open(&finder->table))
		return search_by_statements(finder, searches, nsearches);
	rows = search_index(finder, searches, nsearches);
	straight_close(&finder->table);
	return rows;
}

/* A text that was found, or NULL. */
char *
found_text(const FoundRow *row, int column)
{
	return row->isnull[column] ? NULL : TextDatumGetCString(row->values[column]);
}
