/*-------------------------------------------------------------------------
 * index.c
 *		What indexes are good for who goes straight to them.
 *
 * Who looks rows up without the planner has to see to what it sees to: that the
 * index compares as the query would, and has all rows of the snapshot.
 *-------------------------------------------------------------------------
 */
#include "server/index.h"

#include "access/heapam.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_type.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* Whether a table is a plain heap. */
bool
index_is_over_heap(Relation table)
{
	return table->rd_rel->relkind == RELKIND_RELATION &&
		table->rd_tableam == GetHeapamTableAmRoutine();
}

/* The order of a type.  That of text is told apart: looking it up takes long, once in a session. */
static Oid
usual_family(Oid type)
{
	return type == TEXTOID ? TEXT_BTREE_FAM_OID : lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY)->btree_opf;
}

/* Whether a column of an index is compared as its type is, and bytes that differ are different. */
bool
index_has_usual_order(Relation table, Relation index, int column, Oid type)
{
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(table), index->rd_index->indkey.values[column] - 1);
	Oid			collation = index->rd_indcollation[column];

	return index->rd_opfamily[column] == usual_family(type) &&
		collation == attribute->attcollation &&
		(!OidIsValid(collation) || get_collation_isdeterministic(collation));
}

/* An index from before changes of its rows is of no use to snapshots that see what was before. */
bool
index_is_usable(Relation index)
{
	return index->rd_index->indisvalid &&
		(!index->rd_index->indcheckxmin ||
		 TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data), TransactionXmin));
}
