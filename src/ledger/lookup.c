/*-------------------------------------------------------------------------
 * lookup.c
 *		The way straight to a row, by a unique index of its month.
 *
 * A row is found as a SELECT of the ledger's owner would find it, in the latest
 * snapshot, with the same locks on the table and the index that it is in, and
 * under SERIALIZABLE with the same predicate locks.  (In the month that calls
 * write to it is the INSERT's lock that is taken: one instead of two, of which
 * the stronger comes after the weaker.)  But a SELECT has a plan
 * for the whole ledger, and locks all months for it; here only those are opened
 * that can hold the row, from the newest to the first that does.  (As an id
 * begins with its row's time, that is the one with the greatest id.  A default
 * partition has rows of any time, and is looked into, too.)
 *
 * So only where the executor has nothing else to do: a plain heap, with a
 * unique B-tree index that a planner could use for it.  What it compares with
 * is the server's own, and predicates and checks are not evaluated, so that
 * nobody's code runs.  Otherwise lookup_row says so, and the caller takes a
 * statement.
 *
 * The index on request_id begins with it, so that all rows of a request are
 * beside each other and mostly told from others by one comparison.  Months from
 * before 0.2.0 have it by agent and kind, and are searched once for each kind.
 *
 * Which indexes a partition has is kept until it is invalidated.  The lock on
 * the partition lets invalidations in, and keeps its indexes there: one that is
 * dropped or rebuilt, be it concurrently, stays until nobody has that lock.
 * Partitions stay, as the caller has locked the ledger (ledger_begin).
 *-------------------------------------------------------------------------
 */
#include "ledger/lookup.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "storage/bufmgr.h"
#include "storage/predicate.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "ledger/announce.h"
#include "ledger/insert.h"
#include "ledger/partition.h"
#include "ledger/place.h"
#include "ledger/row.h"
#include "server/compat.h"
#include "server/index.h"
#include "server/lock.h"

/* By which index, the best first. */
static const struct
{
	LookupKey	key;
	IndexForm	form;
	int			nsearched;		/* how many of its columns a search gives */
}			ways[] = {
	{LOOKUP_ID, FORM_ID, 1},
	{LOOKUP_SETTLES, FORM_SETTLES, 1},
	{LOOKUP_REQUEST, FORM_REQUEST, 2},
	{LOOKUP_REQUEST, FORM_OLD_REQUEST, 3},
};

/* What is to be found: a row for each of some kinds; once there is the first, others do not matter. */
typedef struct Lookup
{
	LookupKey	key;
	Datum		id;				/* LOOKUP_ID, LOOKUP_SETTLES */
	Datum		agent_id;		/* LOOKUP_REQUEST */
	Datum		request_id;
	const LedgerKind *kinds;	/* NULL: one row, of whatever kind */
	int			count;
	TimestampTz since;			/* ts of the row */
	TimestampTz until;
} Lookup;

/* ---- the row ---- */

static LedgerRow *
read_row(TupleTableSlot *slot, const AttrNumber *attnums)
{
	LedgerRow  *row = palloc0(sizeof(LedgerRow));
	Datum		value;
	bool		isnull;

	slot_getallattrs(slot);
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		if (!ledger_columns[i].found)
			continue;
		value = slot_getattr(slot, attnums[i], &isnull);
		row_set(row, i, value, isnull);
	}
	value = slot_getsysattr(slot, MinTransactionIdAttributeNumber, &isnull);
	row->own = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(value));
	return row;
}

/* Whether a row that has the key is one, in a partition of more than one month for example. */
static bool
is_looked_for(const LedgerRow *row, const Lookup *lookup)
{
	return row->ts >= lookup->since && row->ts < lookup->until &&
		(lookup->key != LOOKUP_REQUEST || strcmp(row->result, "allowed") == 0);
}

/* Keeps a row that is the first of its kind. */
static void
keep_row(LedgerRow *row, const Lookup *lookup, LedgerRow **rows)
{
	for (int i = 0; i < lookup->count; i++)
		if (rows[i] == NULL && (lookup->kinds == NULL || lookup->kinds[i] == row->kind))
			rows[i] = row;
}

/* What the rows of a kind have in a column. */
static Datum
value_of(const Lookup *lookup, LedgerColumnNumber column, int kind)
{
	switch (column)
	{
		case COLUMN_agent_id:
			return lookup->agent_id;
		case COLUMN_kind:
			return CStringGetTextDatum(ledger_kinds[lookup->kinds[kind]]);
		case COLUMN_request_id:
			return lookup->request_id;
		default:
			return lookup->id;
	}
}

static void
make_scan_keys(Relation index, int way, const Lookup *lookup, int kind, ScanKey scan_keys)
{
	for (int i = 0; i < ways[way].nsearched; i++)
	{
		LedgerColumnNumber column = index_forms[ways[way].form].columns[i];

		ScanKeyEntryInitialize(&scan_keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i],
							   ledger_columns[column].type == UUIDOID ? F_UUID_EQ : F_TEXTEQ,
							   value_of(lookup, column, kind));
	}
}

static bool
found_all(const Lookup *lookup, LedgerRow *const *rows)
{
	for (int i = 0; i < lookup->count; i++)
		if (rows[i] == NULL)
			return false;
	return true;
}

/* The next row of a scan that is visible, or NULL.  slot: made when there is one to be looked at. */
static LedgerRow *
next_row(IndexScanDesc scan, Relation partition, const Place *place, TupleTableSlot **slot)
{
	while (index_getnext_tid(scan, ForwardScanDirection) != NULL)
	{
		if (*slot == NULL)
			*slot = table_slot_create(partition, NULL);
		if (index_fetch_heap(scan, *slot))
			return read_row(*slot, place->attnums);
	}
	return NULL;
}

/* Looks for the rows that have not been found yet, in one scan. */
static void
search_index(Relation partition, Relation index, int way, const Place *place, const Lookup *lookup, LedgerRow **rows)
{
	int			nkeys = ways[way].nsearched;
	int			nsearches = ways[way].form == FORM_OLD_REQUEST ? lookup->count : 1;
	TupleTableSlot *slot = NULL;
	ScanKeyData scan_keys[MAX_FORM_COLUMNS];
	IndexScanDesc scan = compat_index_beginscan(partition, index, GetActiveSnapshot(), nkeys);

	for (int i = 0; i < nsearches && !found_all(lookup, rows); i++)
	{
		LedgerRow  *row;

		make_scan_keys(index, way, lookup, i, scan_keys);
		index_rescan(scan, scan_keys, nkeys, NULL, 0);
		while (!found_all(lookup, rows) && (row = next_row(scan, partition, place, &slot)) != NULL)
			if (is_looked_for(row, lookup))
				keep_row(row, lookup, rows);
	}
	index_endscan(scan);
	if (slot != NULL)
		ExecDropSingleTupleTableSlot(slot);
}

/* The best way to what is looked for that a partition has; -1 for none. */
static int
find_way(const Place *place, LookupKey key)
{
	for (int way = 0; way < (int) lengthof(ways); way++)
		if (ways[way].key == key && OidIsValid(place->indexes[ways[way].form]))
			return way;
	return -1;
}

/* Looks into a heap.  Returns false where it has no index for that. */
static bool
search_heap(Relation partition, LOCKMODE lock, const Lookup *lookup, LedgerRow **rows)
{
	const Place *place = place_of(partition);
	int			way = find_way(place, lookup->key);
	Relation	index;
	bool		usable;

	if (way < 0)
		return false;
	index = index_open(place->indexes[ways[way].form], lock);
	usable = index_is_usable(index);
	if (usable)
		search_index(partition, index, way, place, lookup, rows);
	index_close(index, NoLock);
	return usable;
}

/* Looks into a partition.  Returns false where only a statement can. */
static bool
search_partition(Oid relid, const Lookup *lookup, LedgerRow **rows)
{
	LOCKMODE	lock = insert_is_into(relid) ? RowExclusiveLock : AccessShareLock;
	Relation	partition;
	bool		searched = false;

	lock_relation(relid, lock);
	partition = table_open(relid, NoLock);
	if (index_is_over_heap(partition))
	{
		/* next month's, made ahead */
		if (RelationGetNumberOfBlocks(partition) == 0)
		{
			PredicateLockRelation(partition, GetActiveSnapshot());
			searched = true;
		}
		else
			searched = search_heap(partition, lock, lookup, rows);
	}
	table_close(partition, NoLock);
	return searched;
}

static bool
found_enough(const Lookup *lookup, LedgerRow *const *rows)
{
	return rows[0] != NULL || found_all(lookup, rows);
}

/* Looks into the default partition: of two rows with the same values the one with the greater id is found. */
static bool
search_rest(Oid relid, const Lookup *lookup, LedgerRow **rows)
{
	LedgerRow  *others[MAX_LOOKUPS] = {NULL};

	if (!search_partition(relid, lookup, others))
		return false;
	for (int i = 0; i < lookup->count; i++)
		if (rows[i] == NULL || (others[i] != NULL && memcmp(&others[i]->id, &rows[i]->id, UUID_LEN) > 0))
			rows[i] = others[i];
	return true;
}

/* Looks into all partitions that can hold the rows.  Returns false where only a statement can. */
static bool
search_ledger(Relation ledger, const Lookup *lookup, LedgerRow **rows)
{
	PartitionReach reach = partition_reach_in(ledger, lookup->since, lookup->until);
	ListCell   *cell;

	foreach(cell, reach.relids)
	{
		if (!search_partition(lfirst_oid(cell), lookup, rows))
			return false;
		if (found_enough(lookup, rows))
			break;
	}
	return !OidIsValid(reach.rest) || search_rest(reach.rest, lookup, rows);
}

/* Returns false where only statements can find the rows: policies may say which there are. */
static bool
find_rows(Oid ledger_id, const Lookup *lookup, LedgerRow **rows)
{
	Relation	ledger;
	bool		searched = false;

	Assert(lookup->count <= MAX_LOOKUPS);
	memset(rows, 0, sizeof(LedgerRow *) * lookup->count);
	announce_refresh(ledger_id);
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	ledger = table_open(ledger_id, NoLock);
	if (!ledger->rd_rel->relrowsecurity)
		searched = search_ledger(ledger, lookup, rows);
	table_close(ledger, NoLock);
	PopActiveSnapshot();
	return searched;
}

/*
 * Finds the row that has this id, or settles the one that has it, and a ts from
 * since (inclusive) to until (exclusive); of several the one with the greatest
 * id.  row: NULL where there is none.  Returns false where only a statement can
 * find it.  After ledger_begin.
 */
bool
lookup_row(Oid ledger, LookupKey key, const pg_uuid_t *id, TimestampTz since, TimestampTz until,
		   LedgerRow **row)
{
	Lookup		lookup = {
		.key = key,
		.id = UUIDPGetDatum(id),
		.count = 1,
		.since = since,
		.until = until,
	};

	return find_rows(ledger, &lookup, row);
}

/*
 * The same for the admitted rows of an agent's request, one of each kind.  rows:
 * NULL where there is none, and maybe where there is but the first was found.
 */
bool
lookup_requests(Oid ledger, const char *agent_id, const char *request_id,
				const LedgerKind *kinds, int count, TimestampTz since, LedgerRow **rows)
{
	Lookup		lookup = {
		.key = LOOKUP_REQUEST,
		.agent_id = CStringGetTextDatum(agent_id),
		.request_id = CStringGetTextDatum(request_id),
		.kinds = kinds,
		.count = count,
		.since = since,
		.until = DT_NOEND,
	};

	return find_rows(ledger, &lookup, rows);
}
